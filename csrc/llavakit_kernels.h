/* The only public header of the native library: plain C, pointers, 64-bit sizes, status codes.
 *
 * Every function may be called from any thread. Nothing throws, nothing keeps state between calls, and the
 * instruction set is an argument, never a hidden setting: ask llk_isa_best() once and pass it on, or pass a
 * lower one to compare.
 */
#ifndef LLAVAKIT_KERNELS_H
#define LLAVAKIT_KERNELS_H

#include <stdint.h>

#if defined(_WIN32)
#define LLK_EXPORT __declspec(dllexport)
#else
#define LLK_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes whenever a signature or a meaning below changes. */
#define LLK_ABI_VERSION 3

enum llk_status {
  LLK_OK = 0,
  LLK_BAD_ARGUMENT = 1, /* a value out of its documented range */
  LLK_UNSUPPORTED = 2,  /* this processor or this build lacks the instruction set or the operation */
  LLK_NO_MEMORY = 3,    /* the read buffer could not be allocated */
  LLK_NO_THREAD = 4     /* the operating system refused a thread */
};

enum llk_isa {
  LLK_ISA_PORTABLE = 0, /* 128-bit vectors of the compiler, on any processor */
  LLK_ISA_AVX2 = 1,
  LLK_ISA_AVX2_VNNI = 2,
  LLK_ISA_AVX512 = 3,
  LLK_ISA_AVX512_VNNI = 4,
  LLK_ISA_AVX512_BF16 = 5,
  LLK_NUM_ISAS = 6
};

enum llk_rate {
  LLK_RATE_FP32_FMA = 0, /* float32 multiply-add, 2 operations an element */
  LLK_RATE_BF16_DOT = 1, /* bfloat16 pairs multiplied and added to float32, 2 operations a product */
  LLK_RATE_INT8_DOT = 2, /* int8 quads multiplied and added to int32, 2 operations a product */
  LLK_NUM_RATES = 3
};

/* Quantized types, numbered as in GGUF. */
enum llk_type {
  LLK_TYPE_Q4_0 = 2,
  LLK_TYPE_Q4_1 = 3,
  LLK_TYPE_Q5_0 = 6,
  LLK_TYPE_Q5_1 = 7,
  LLK_TYPE_Q8_0 = 8,
  LLK_TYPE_Q2_K = 10,
  LLK_TYPE_Q3_K = 11,
  LLK_TYPE_Q4_K = 12,
  LLK_TYPE_Q5_K = 13,
  LLK_TYPE_Q6_K = 14
};

/* The release this library belongs to, such as "0.1.0". Static storage. */
LLK_EXPORT const char *llk_version(void);
LLK_EXPORT int32_t llk_abi_version(void);

/* "portable", "avx2", ...; null for a value out of range. Static storage. */
LLK_EXPORT const char *llk_isa_name(int32_t isa);

/* 1 when this build holds the instruction set and this processor and its operating system run it. */
LLK_EXPORT int32_t llk_isa_is_supported(int32_t isa);

/* The highest supported instruction set. */
LLK_EXPORT int32_t llk_isa_best(void);

/* Read num_bytes of ordinary memory again and again for at least `seconds`.
 *
 * Each of num_threads (1 to 4096) owns one part of the buffer and walks it in num_streams (1 to 16)
 * places at once. num_bytes should be several times the last cache. *gb_per_s is in 10^9 bytes per second,
 * all threads together.
 */
LLK_EXPORT int32_t llk_measure_read(int32_t isa, int64_t num_bytes, int32_t num_threads, int32_t num_streams,
                                    double seconds, double *gb_per_s);

/* Run one arithmetic instruction on registers only, for at least `seconds`, on num_threads threads.
 * *gops is in 10^9 operations per second, all threads together.
 */
LLK_EXPORT int32_t llk_measure_rate(int32_t isa, int32_t rate, int32_t num_threads, double seconds, double *gops);

/* Weights in a block of a type, and its bytes. LLK_UNSUPPORTED for another type. */
LLK_EXPORT int32_t llk_quant_block(int32_t type, int32_t *block_length, int32_t *block_bytes);

/* Expand num_weights weights, a multiple of the block length. The blocks may lie at any address. */
LLK_EXPORT int32_t llk_dequantize(int32_t isa, int32_t type, const void *weights, int64_t num_weights, float *out);

/* out[m * out_ld + n] = sum over k of round8(x)[m * k + ...] * weights[n * k + ...].
 *
 * weights are num_columns rows of k, a multiple of the block length, at any address; x is num_rows rows of k. Each
 * span of x, 256 long for the k-quants and 32 for the others, is rounded to 255 steps between plus and minus its
 * greatest magnitude; products are summed exactly within a group of the type, and groups in float. The result does not
 * depend on num_threads (1 to 1024) and not on the other rows, but on num_rows: the order of the sums does.
 */
LLK_EXPORT int32_t llk_matmul(int32_t isa, int32_t type, const void *weights, int64_t num_columns, int64_t k,
                              const float *x, int64_t num_rows, float *out, int64_t out_ld, int32_t num_threads);

/* Quantize num_rows rows of k weights, k a multiple of the block length, so that the sum over the weights of
 * importance[column] * (weight - stored)^2 is small. importance is one positive number per column, or null for ones.
 * Weights must be finite. The bytes depend neither on num_threads nor on the instruction set.
 */
LLK_EXPORT int32_t llk_quantize(int32_t isa, int32_t type, const float *x, int64_t num_rows, int64_t k,
                                const float *importance, void *out, int32_t num_threads);

#ifdef __cplusplus
}
#endif
#endif
