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
#define LLK_ABI_VERSION 8

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
  LLK_RATE_INT8_DOT = 2, /* int8 products and their sums, 2 operations a product: four to int32 at once
                            or, without such an instruction, two and two to int16 */
  LLK_NUM_RATES = 3
};

/* How weights are stored, numbered as in GGUF. */
enum llk_type {
  LLK_TYPE_F32 = 0,
  LLK_TYPE_F16 = 1,
  LLK_TYPE_Q4_0 = 2,
  LLK_TYPE_Q4_1 = 3,
  LLK_TYPE_Q5_0 = 6,
  LLK_TYPE_Q5_1 = 7,
  LLK_TYPE_Q8_0 = 8,
  LLK_TYPE_Q2_K = 10,
  LLK_TYPE_Q3_K = 11,
  LLK_TYPE_Q4_K = 12,
  LLK_TYPE_Q5_K = 13,
  LLK_TYPE_Q6_K = 14,
  LLK_TYPE_BF16 = 30
};

enum llk_activation {
  LLK_ACTIVATION_NONE = 0,
  LLK_ACTIVATION_QUICK_GELU = 1 /* x / (1 + exp(-1.702 x)) */
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

/* Starts `body(data)` on up to num_threads threads, the caller's among them, and returns when all have ended: the
 * signature of GOMP_parallel. */
typedef void (*llk_team)(void (*body)(void *data), void *data, unsigned num_threads, unsigned flags);

/* Compute on another library's threads from now on, or with null on our own. Two sets of threads that take turns hold
 * each other up, because those that have nothing to do stay awake for a moment. A child of fork() uses our own. */
LLK_EXPORT void llk_set_team(llk_team parallel);

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

/* out[m * out_ld + n] = activation(bias[n] + sum over k of round(x)[m * k + ...] * weights[n * k + ...]); bias may be null.
 *
 * weights are num_columns rows of k, a multiple of the block length, at any address (of float32: of whole numbers); x is
 * num_rows rows of k. With weights in float32 nothing is rounded but sums, and the result does not depend on num_rows.
 * With quantized weights each span of x, 256 long for the k-quants and 32 for the others, is rounded to 255 steps
 * between plus and minus its greatest magnitude; products are summed exactly within a group of the type, and groups in
 * float. With weights of 16 bits up to 4 rows are computed in float, or in exact parts of them; of more, spans of 128 of x are rounded to
 * 16383 steps and spans of 64 weights to 8191. The result does not depend on num_threads (1 to 1024) and not on the
 * other rows, but on num_rows: the order of the sums does, and of the weights of 16 bits the rounding.
 */
LLK_EXPORT int32_t llk_matmul(int32_t isa, int32_t type, const void *weights, int64_t num_columns, int64_t k,
                              const float *x, int64_t num_rows, const float *bias, int32_t activation, float *out,
                              int64_t out_ld, int32_t num_threads);

/* A stored matrix of num_columns rows of k. With is_interleaved its products are pairs of rotary positions side by side. */
typedef struct llk_matrix {
  const void *weights;
  int64_t num_columns, k;
  int32_t type, is_interleaved;
} llk_matrix;

/* llk_matmul of the first matrix with `activation`, and of its result with the second, whose k is the columns of the first.
 * To the bit what two calls compute; with many rows and weights of 16 bits what lies between is not stored as floats. */
LLK_EXPORT int32_t llk_matmul_pair(int32_t isa, const llk_matrix *first, const float *first_bias, int32_t activation,
                                   const llk_matrix *second, const float *second_bias, const float *x, int64_t num_rows,
                                   float *out, int32_t num_threads);

/* Quantize num_rows rows of k weights, k a multiple of the block length, so that the sum over the weights of
 * importance[column] * (weight - stored)^2 is small. importance is one positive number per column, or null for ones.
 * Weights must be finite. The bytes depend neither on num_threads nor on the instruction set.
 */
LLK_EXPORT int32_t llk_quantize(int32_t isa, int32_t type, const float *x, int64_t num_rows, int64_t k,
                                const float *importance, void *out, int32_t num_threads);

/* out = gate / (1 + exp(-gate)) * up, number by number; out may be gate or up. */
LLK_EXPORT int32_t llk_swiglu(int32_t isa, const float *gate, const float *up, int64_t count, float *out,
                              int32_t num_threads);

/* out = x / sqrt(mean(x^2) + eps) * weight for every row of x. */
LLK_EXPORT int32_t llk_rms_norm(int32_t isa, const float *x, const float *weight, float eps, int64_t num_rows,
                                int64_t width, float *out, int32_t num_threads);

/* x += added, then out = x / sqrt(mean(x^2) + eps) * weight for every row; out may be x. */
LLK_EXPORT int32_t llk_add_rms_norm(int32_t isa, float *x, const float *added, const float *weight, float eps,
                                    int64_t num_rows, int64_t width, float *out, int32_t num_threads);

/* Rotate the pairs (i, i + head_dim / 2) of every head by the angles of its position. x is num_positions rows of
 * num_heads * head_dim; cosines and sines are num_positions rows of head_dim / 2. With is_interleaved the pairs of x are
 * (2 i, 2 i + 1), and of out the others, which must then be other memory. */
LLK_EXPORT int32_t llk_rotary(int32_t isa, const float *x, const float *cosines, const float *sines,
                              int64_t num_positions, int64_t num_heads, int64_t head_dim, int32_t is_interleaved,
                              float *out, int32_t num_threads);

/* Round blocks of 32 numbers to Q8_0, the greatest size to 127: for keys and values, where a search would cost more than
 * it gains. */
LLK_EXPORT int32_t llk_round_blocks(int32_t isa, const float *x, int64_t num_blocks, void *out, int32_t num_threads);

/* Write num_rows rows of num_heads * head_dim keys or values into a cache of kv_type (LLK_TYPE_F32, _F16 or _Q8_0): head h
 * of row i to out, slots[i] + h * head_stride away, in numbers, and of Q8_0 in bytes. */
LLK_EXPORT int32_t llk_store_positions(int32_t isa, const float *x, int64_t num_rows, int64_t num_heads, int64_t head_dim,
                                       int32_t kv_type, const int64_t *slots, int64_t head_stride, void *out,
                                       int32_t num_threads);

/* When a mapped file turns out to be shorter than it was, or cannot be read, the system sends SIGBUS, and nothing can be
 * returned to. From now on the process then writes `message` to standard error and ends with `exit_status`. */
LLK_EXPORT int32_t llk_explain_bus_errors(const char *message, int32_t exit_status);

/* Attention of num_queries queries of each row of a batch. Strides are in numbers: from row to row, head to head,
 * position to position; the numbers of a head lie together. out is (batch, num_queries, num_heads, head_dim).
 * With a block table the keys and values of a row lie in blocks of block_size positions, a power of two; its row of the
 * table names them in order, and the first of the strides is from block to block. */
typedef struct llk_attention_call {
  const float *query;
  const void *keys, *values; /* of kv_type: LLK_TYPE_F32, _F16, or _Q8_0 with strides in bytes */
  float *out;
  int64_t query_strides[3], key_strides[3], value_strides[3];
  const int64_t *num_keys; /* of each row of the batch: all that it has, the queries' own keys last */
  int64_t batch, num_queries, num_heads, num_kv_heads, head_dim;
  int32_t kv_type, is_causal; /* causal: query i sees all keys but the last num_queries - 1 - i */
  float scale;
  const int32_t *block_table; /* batch rows of table_stride numbers below num_blocks, or null */
  int64_t table_stride, block_size, num_blocks;
} llk_attention_call;

LLK_EXPORT int32_t llk_attention(int32_t isa, const llk_attention_call *call, int32_t num_threads);

typedef struct llk_decoder_layer {
  const float *attention_norm, *mlp_norm;
  llk_matrix query, key, value, attention_out, gate, up, down;
} llk_decoder_layer;

/* `batch` rows of num_queries tokens each, from token first_token on, whose keys end with their own. */
typedef struct llk_token_group {
  int64_t first_token, batch, num_queries;
  const int64_t *num_keys;    /* of each row */
  const int32_t *block_table; /* as in llk_attention_call, or null */
  int64_t table_stride;
} llk_token_group;

/* A pass of num_tokens tokens through all layers of a LLaMA decoder and its last norm: what the functions above compute
 * when they are called one after the other.
 *
 * Keys and values of layer i begin layer_bytes * i behind `keys` and `values`. kv_strides are from row or block to the
 * next, head to head, position to position; slots say where each token's own go, as in llk_store_positions. */
typedef struct llk_decoder_call {
  const llk_decoder_layer *layers;
  const float *last_norm;
  float *x; /* num_tokens rows of width: embeddings, and in the end the result */
  const float *cosines, *sines; /* num_tokens rows of head_dim / 2 */
  void *keys, *values;
  const int64_t *slots;
  const llk_token_group *groups;
  float *scratch; /* llk_decoder_scratch() numbers */
  int64_t num_layers, num_tokens, num_groups, width, num_heads, num_kv_heads, head_dim, mlp_width;
  int64_t layer_bytes, kv_strides[3], block_size, num_blocks;
  int32_t kv_type;
  float eps;
} llk_decoder_call;

/* Numbers of scratch memory that a pass needs; negative if a size is out of range. */
LLK_EXPORT int64_t llk_decoder_scratch(const llk_decoder_call *call);
LLK_EXPORT int32_t llk_decode(int32_t isa, const llk_decoder_call *call, int32_t num_threads);

#ifdef __cplusplus
}
#endif
#endif
