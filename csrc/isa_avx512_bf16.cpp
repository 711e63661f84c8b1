#include "simd_avx512.h"

namespace {
using Halves = __m512bh;

inline Ints int8_dot(Ints acc, Ints a, Ints b) { return _mm512_dpbusd_epi32(acc, a, b); }
inline Floats bf16_dot(Floats acc, Halves a, Halves b) { return _mm512_dpbf16_ps(acc, a, b); }
inline Halves set_halves(int16_t bits) {
  const __m512i vector = _mm512_set1_epi16(bits);
  Halves value;
  __builtin_memcpy(&value, &vector, sizeof value);
  return value;
}
}  // namespace

#include "few_bf16.inc"

// Other products use no instruction that the level below lacks.
#define LLK_PRODUCTS kProductsAvx512Vnni
#define LLK_OPS kOpsAvx512Vnni
#define LLK_BF16_DOT
#define LLK_FEW_BF16 kFewBf16
#define LLK_INT8_DOT
#define LLK_QUANTIZERS kQuantizersAvx512
#define LLK_TABLE kTableAvx512Bf16
#include "probe.inc"
