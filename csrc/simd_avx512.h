// 512-bit vectors of AVX-512 for the bodies in probe.inc.
#pragma once

#include <immintrin.h>

#include "kernel_table.h"

namespace {

using Bytes = __m512i;
using Floats = __m512;
using Ints = __m512i;
constexpr int kNumAccumulators = 16;  // 32 registers

inline Bytes load_bytes(const unsigned char *at) { return _mm512_load_si512(at); }
inline Bytes xor_bytes(Bytes a, Bytes b) { return _mm512_xor_si512(a, b); }
inline uint64_t fold_bytes(Bytes a) {
  const __m256i quarter = _mm256_xor_si256(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
  const __m128i half = _mm_xor_si128(_mm256_castsi256_si128(quarter), _mm256_extracti128_si256(quarter, 1));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_xor_si128(half, _mm_unpackhi_epi64(half, half))));
}
inline Floats set_floats(float value) { return _mm512_set1_ps(value); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline float first_float(Floats a) { return _mm512_cvtss_f32(a); }
[[maybe_unused]] inline Ints set_ints(int32_t value) { return _mm512_set1_epi32(value); }
[[maybe_unused]] inline int32_t first_int(Ints a) { return _mm_cvtsi128_si32(_mm512_castsi512_si128(a)); }

}  // namespace
