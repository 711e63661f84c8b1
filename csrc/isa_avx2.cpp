#include "simd_avx2.h"
#include "vec_avx2.h"

namespace {
// Products of bytes as fast as this processor adds them up: in 16 bits. Both operations depend on `acc`, or a compiler would
// multiply once; and each dot stays where it is, or all would be multiplied first and not fit in the registers.
inline Ints int8_dot(Ints acc, Ints a, Ints b) {
  acc = _mm256_add_epi16(_mm256_maddubs_epi16(acc, b), a);
  __asm__ volatile("" : "+x"(acc));
  return acc;
}
}  // namespace

#define LLK_NARROW Vec256
#define LLK_WIDE Vec256
#define LLK_PRODUCTS kProductsAvx2
#define LLK_OPS kOpsAvx2
#include "matmul.inc"

#define LLK_QUANTIZERS kQuantizersAvx2
#include "quantize.inc"

#define LLK_INT8_DOT
#define LLK_TABLE kTableAvx2
#include "probe.inc"
