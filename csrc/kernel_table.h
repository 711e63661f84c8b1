// One table of functions per instruction set. No C++ library header here: isa_*.cpp include this file.
#pragma once

#include <stdint.h>

#include "llavakit_kernels.h"

// Sizes that the driver and the bodies in matmul.inc agree on.
constexpr int LLK_STRIP_COLUMNS = 32;
constexpr int LLK_MAX_FEW_ROWS = 8;
constexpr int LLK_COLUMN_BYTES = 768;
constexpr int LLK_QUERY_BLOCK = 128;
constexpr int LLK_MOST_TILE_QUERIES = 32;
constexpr int LLK_KEY_BLOCK = 48;
// Attention in words: it takes heads of so many numbers at most, in multiples of 16.
constexpr int LLK_WORD_QUERIES = 64;
constexpr int LLK_WORD_KEYS = 64;
constexpr int LLK_WORD_HEAD_DIM = 64;
constexpr int LLK_WORD_MAX_KEYS = 1 << 16;

// Scratch of attention: of every query of whole tiles itself and its sums, a tile's weights, a block of keys and values; or of
// one query the weights of all its keys.
constexpr int64_t attention_floats(int64_t head_dim, int64_t num_keys) {
  const int64_t of_block = LLK_QUERY_BLOCK * 2 * head_dim + LLK_KEY_BLOCK * (LLK_MOST_TILE_QUERIES + 2 * head_dim);
  return (of_block > num_keys ? of_block : num_keys) + 64;
}

// Of attention in words: of a key 64 words, 64 of its value and two scales; and what a tile of queries needs.
constexpr int64_t word_attention_floats(int64_t num_keys) {
  return (num_keys + LLK_WORD_KEYS - 1) / LLK_WORD_KEYS * LLK_WORD_KEYS * (LLK_WORD_HEAD_DIM + 2) +
         4 * LLK_WORD_QUERIES * LLK_WORD_HEAD_DIM;
}
constexpr int LLK_NUM_QUANT_TYPES = 10;
constexpr int LLK_NUM_TYPES = 2 + LLK_NUM_QUANT_TYPES;

// Products of many rows, whose vectors hold num_lanes rows.
struct ManyRowsProduct {
  int32_t num_lanes;
  int32_t block_k;       // numbers of a row that are packed together
  int32_t packed_bytes;  // of one vector's block of that many
  void (*pack)(const float *x, int64_t ld, int num_rows, int64_t k, int64_t num_vectors, void *packed);
  // `next` is the strip that this thread takes next, as many columns or fewer, to be fetched meanwhile; or null.
  void (*multiply)(const uint8_t *weights, int64_t row_bytes, int num_columns, int64_t k, const void *packed,
                   int64_t num_rows, void *columns, float *sums, const uint8_t *next);
  // Finishes a strip of block_k columns as Ops::store_strip does, and packs them as the rows' block of the next product that
  // `packed` points to: what `pack` would make of them. Or null.
  void (*pack_strip)(const float *sums, int64_t num_rows, const float *bias, int activation, void *packed);
};

// Products of few rows, whose vectors hold numbers of one row.
struct FewRowsProduct {
  int32_t packed_bytes;  // of 256 packed numbers of one row
  int32_t max_rows;      // so many of the functions in `multiply` are there
  void (*pack)(const float *x, int64_t k, void *packed);
  void (*multiply[LLK_MAX_FEW_ROWS])(const uint8_t *weights, int64_t row_bytes, int64_t num_columns, int64_t k,
                                     const void *packed, int64_t row_stride, float *out, int64_t ld);
};

// Everything that can be done with weights of one type.
struct Products {
  int32_t type;
  int32_t block_length;
  int32_t block_bytes;
  void (*dequantize)(const uint8_t *row, int64_t k, float *out);
  FewRowsProduct few;
  ManyRowsProduct narrow, wide;
};

// One block of a type from its weights; importance may be null.
struct Quantizer {
  int32_t type;
  void (*quantize)(const float *x, const float *importance, uint8_t *out);
};

// Where the positions of one head lie: one after the other, or in blocks that a table names.
struct Positions {
  const uint8_t *base;
  int64_t position_bytes;
  const int32_t *table;  // block of each run of 2^shift positions, or null
  int64_t block_bytes;
  int32_t shift;

  const uint8_t *at(int64_t position) const {
    if (table == nullptr) return base + position * position_bytes;
    return base + table[position >> shift] * block_bytes + (position & ((int64_t{1} << shift) - 1)) * position_bytes;
  }
};

// Attention of one head; strides in numbers for the queries and the output, in bytes for keys and values.
struct AttentionHead {
  const float *query;
  int64_t query_stride;
  Positions keys, values;
  float *out;
  int64_t out_stride;
  int64_t num_queries, num_keys;
  int32_t head_dim, is_causal;
  float scale;
};

// What lies between the products; see ops.inc.
struct Ops {
  // out = x @ weights.T, weights in float32; see matmul_floats.inc.
  void (*multiply_floats)(const float *weights, int64_t num_columns, int64_t k, const float *x, int64_t num_rows,
                          float *out, int64_t out_ld);
  void (*finish_rows)(float *out, int64_t ld, int64_t num_rows, int64_t num_columns, const float *bias, int activation);
  void (*store_strip)(const float *sums, int64_t ld, int64_t num_rows, int num_columns, float *out, int64_t out_ld,
                      const float *bias, int activation);
  void (*swiglu)(const float *gate, const float *up, int64_t count, float *out);
  void (*rms_norm)(const float *x, const float *weight, float eps, int64_t width, float *out);
  void (*rotate_head)(const float *x, const float *cosines, const float *sines, int head_dim, int is_interleaved,
                      float *out);
  void (*round_blocks)(const float *x, int64_t num_blocks, uint8_t *out);
  void (*round_halves)(const float *x, int64_t count, uint8_t *out);
  void (*add)(float *x, const float *added, int64_t count);
  void (*attend[3])(const AttentionHead &head, int64_t first, int count, float *scratch);  // float32, float16, Q8_0
  // As attend, of float32 without a mask, for any number of queries; see LLK_WORD_KEYS. Or null.
  void (*attend_words)(const AttentionHead &head, int64_t first, int64_t count, float *scratch);
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
  const Products *products;     // LLK_NUM_TYPES of them
  const FewRowsProduct *bf16;   // in place of the products' own, or null
  const Quantizer *quantizers;  // LLK_NUM_QUANT_TYPES of them
  const Ops *ops;
};

extern const Products kProductsPortable[LLK_NUM_TYPES];
extern const Products kProductsAvx2[LLK_NUM_TYPES];
extern const Products kProductsAvx2Vnni[LLK_NUM_TYPES];
extern const Products kProductsAvx512[LLK_NUM_TYPES];
extern const Products kProductsAvx512Vnni[LLK_NUM_TYPES];

extern const Ops kOpsPortable, kOpsAvx2, kOpsAvx2Vnni, kOpsAvx512, kOpsAvx512Vnni;

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
