#include "simd_avx512.h"

namespace {
inline Ints int8_dot(Ints acc, Ints a, Ints b) { return _mm512_dpbusd_epi32(acc, a, b); }
}  // namespace

#define LLK_INT8_DOT
#define LLK_TABLE kTableAvx512Vnni
#include "probe.inc"
