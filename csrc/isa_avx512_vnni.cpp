#include "simd_avx512.h"
#include "vec_avx2.h"
#include "vec_avx512.h"

namespace {
inline Ints int8_dot(Ints acc, Ints a, Ints b) { return _mm512_dpbusd_epi32(acc, a, b); }
}  // namespace

#define LLK_NARROW Vec256
#define LLK_WIDE Vec512
#define LLK_PRODUCTS kProductsAvx512Vnni
#define LLK_OPS kOpsAvx512Vnni
#include "matmul.inc"

#define LLK_INT8_DOT
#define LLK_QUANTIZERS kQuantizersAvx512
#define LLK_TABLE kTableAvx512Vnni
#include "probe.inc"
