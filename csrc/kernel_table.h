// One table of functions per instruction set. No C++ library header here: isa_*.cpp include this file.
#pragma once

#include <stdint.h>

#include "llavakit_kernels.h"

// Sizes that the driver and the bodies in matmul.inc agree on.
constexpr int LLK_STRIP_COLUMNS = 32;
constexpr int LLK_MAX_FEW_ROWS = 4;
constexpr int LLK_COLUMN_BYTES = 512;
constexpr int LLK_FEW_ROWS_BYTES = 384;
constexpr int LLK_NUM_QUANT_TYPES = 10;

// Products of many rows, whose vectors hold num_lanes rows.
struct ManyRowsProduct {
  int32_t num_lanes;
  int32_t packed_bytes;  // of one vector's block of 256
  void (*pack)(const float *x, int64_t ld, int num_rows, int64_t k, int64_t num_vectors, void *packed);
  void (*multiply)(const uint8_t *weights, int64_t row_bytes, int num_columns, int64_t k, const void *packed,
                   int64_t num_vectors, void *columns, float *sums);
};

// Everything that can be done with weights of one type.
struct QuantProducts {
  int32_t type;
  int32_t block_length;
  int32_t block_bytes;
  void (*dequantize)(const uint8_t *row, int64_t k, float *out);
  void (*pack_few)(const float *x, int64_t k, void *packed);
  void (*multiply_few[LLK_MAX_FEW_ROWS])(const uint8_t *weights, int64_t row_bytes, int64_t num_columns, int64_t k,
                                         const void *packed, int64_t row_stride, float *out, int64_t ld);
  ManyRowsProduct narrow, wide;
};

// One block of a type from its weights; importance may be null.
struct Quantizer {
  int32_t type;
  void (*quantize)(const float *x, const float *importance, uint8_t *out);
};

struct KernelTable {
  // XOR of num_bytes, walked in num_streams equal parts at once. base is 64-byte aligned and num_bytes a
  // multiple of num_streams * 256.
  uint64_t (*read_streams)(const unsigned char *base, int64_t num_bytes, int num_streams);
  // Loops by llk_rate: run num_rounds and return something that depends on every round. Null when the
  // instruction set has no such instruction.
  double (*rate_loops[LLK_NUM_RATES])(int64_t num_rounds);
  // Operations of one round, by llk_rate.
  int64_t rate_ops[LLK_NUM_RATES];
  const QuantProducts *quant_products;  // LLK_NUM_QUANT_TYPES of them
  const Quantizer *quantizers;          // as many
};

extern const QuantProducts kProductsPortable[LLK_NUM_QUANT_TYPES];
extern const QuantProducts kProductsAvx2[LLK_NUM_QUANT_TYPES];
extern const QuantProducts kProductsAvx2Vnni[LLK_NUM_QUANT_TYPES];
extern const QuantProducts kProductsAvx512[LLK_NUM_QUANT_TYPES];
extern const QuantProducts kProductsAvx512Vnni[LLK_NUM_QUANT_TYPES];

// Quantizers need wide registers only, so the levels above share them.
extern const Quantizer kQuantizersPortable[LLK_NUM_QUANT_TYPES];
extern const Quantizer kQuantizersAvx2[LLK_NUM_QUANT_TYPES];
extern const Quantizer kQuantizersAvx512[LLK_NUM_QUANT_TYPES];

extern const KernelTable kTablePortable;
extern const KernelTable kTableAvx2;
extern const KernelTable kTableAvx2Vnni;
extern const KernelTable kTableAvx512;
extern const KernelTable kTableAvx512Vnni;
extern const KernelTable kTableAvx512Bf16;

// Null when the build lacks the instruction set or the processor does not run it.
const KernelTable *table_of(int32_t isa);
