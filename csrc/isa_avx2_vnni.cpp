#include "simd_avx2.h"
#include "vec_avx2.h"

namespace {
inline Ints int8_dot(Ints acc, Ints a, Ints b) { return _mm256_dpbusd_avx_epi32(acc, a, b); }
}  // namespace

#define LLK_NARROW Vec256
#define LLK_WIDE Vec256
#define LLK_PRODUCTS kProductsAvx2Vnni
#define LLK_OPS kOpsAvx2Vnni
#include "matmul.inc"

#define LLK_INT8_DOT
#define LLK_QUANTIZERS kQuantizersAvx2
#define LLK_TABLE kTableAvx2Vnni
#include "probe.inc"
