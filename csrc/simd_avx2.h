// 256-bit vectors of AVX2 for the bodies in probe.inc.
#pragma once

#include <immintrin.h>

#include "kernel_table.h"

namespace {

using Bytes = __m256i;
using Floats = __m256;
using Ints = __m256i;
constexpr int kNumAccumulators = 12;  // 16 registers, two of them operands

inline Bytes load_bytes(const unsigned char *at) { return _mm256_load_si256(reinterpret_cast<const __m256i *>(at)); }
inline Bytes xor_bytes(Bytes a, Bytes b) { return _mm256_xor_si256(a, b); }
inline uint64_t fold_bytes(Bytes a) {
  const __m128i half = _mm_xor_si128(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_xor_si128(half, _mm_unpackhi_epi64(half, half))));
}
inline Floats set_floats(float value) { return _mm256_set1_ps(value); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline float first_float(Floats a) { return _mm256_cvtss_f32(a); }
[[maybe_unused]] inline Ints set_ints(int32_t value) { return _mm256_set1_epi32(value); }
[[maybe_unused]] inline int32_t first_int(Ints a) { return _mm256_extract_epi32(a, 0); }

}  // namespace
