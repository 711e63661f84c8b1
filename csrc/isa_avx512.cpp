#include "simd_avx512.h"
#include "vec_avx2.h"
#include "vec_avx512.h"

namespace {
inline Ints int8_dot(Ints acc, Ints a, Ints b) {  // as AVX2's
  acc = _mm512_add_epi16(_mm512_maddubs_epi16(acc, b), a);
  __asm__ volatile("" : "+v"(acc));
  return acc;
}
}  // namespace

#define LLK_NARROW Vec256
#define LLK_WIDE Vec512
#define LLK_PRODUCTS kProductsAvx512
#define LLK_OPS kOpsAvx512
#include "matmul.inc"

#define LLK_QUANTIZERS kQuantizersAvx512
#include "quantize.inc"

#define LLK_INT8_DOT
#define LLK_TABLE kTableAvx512
#include "probe.inc"
