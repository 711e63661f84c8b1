// 256-bit vectors for the bodies in matmul.inc, with the processor's byte products where it has them.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace {

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define LLK_DPBUSD_256 _mm256_dpbusd_epi32
#define LLK_DPWSSD_256 _mm256_dpwssd_epi32
#elif defined(__AVXVNNI__)
#define LLK_DPBUSD_256 _mm256_dpbusd_avx_epi32
#define LLK_DPWSSD_256 _mm256_dpwssd_avx_epi32
#endif

struct Vec256 {
  using Ints = __m256i;
  using Floats = __m256;
  static constexpr int kLanes = 8;
  // A tile is so many vectors and columns, and one vector alone goes with more columns.
#if defined(__AVX512VL__)
  static constexpr int kTileVectors = 3, kTileColumns = 4, kSingleColumns = 8;
#elif defined(LLK_DPBUSD_256)
  static constexpr int kTileVectors = 1, kTileColumns = 4, kSingleColumns = 4;  // 16 registers: 4 sums, 4 dots, the operands
#else
  static constexpr int kTileVectors = 6, kTileColumns = 1, kSingleColumns = 4;  // rows are loaded by what multiplies them
#endif

  static inline Ints zero_ints() { return _mm256_setzero_si256(); }
  static inline Ints set_ints(int32_t value) { return _mm256_set1_epi32(value); }
  static inline Ints load_ints(const void *at) { return _mm256_loadu_si256(static_cast<const __m256i *>(at)); }
  static inline Floats zero_floats() { return _mm256_setzero_ps(); }
  static inline Floats set_floats(float value) { return _mm256_set1_ps(value); }
  static inline Floats set_pair(float low, float high) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_set1_ps(low)), _mm_set1_ps(high), 1);
  }
  static inline Floats load_floats(const float *at) { return _mm256_loadu_ps(at); }
  static inline Floats load_halves(const void *at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i *>(at)));
  }
  static inline void store_halves(void *at, Floats value) {
    _mm_storeu_si128(static_cast<__m128i *>(at), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  static inline Floats load_bytes(const void *at) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i *>(at))));
  }
  static inline Floats load_bfloats(const void *at) {
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i *>(at)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
  }
  static inline void store_floats(float *at, Floats value) { _mm256_storeu_ps(at, value); }
  static inline Floats to_floats(Ints value) { return _mm256_cvtepi32_ps(value); }
  static inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static inline Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static inline Floats divide(Floats a, Floats b) { return _mm256_div_ps(a, b); }
  static inline Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
  static inline Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static inline Floats choose_less(Floats a, Floats b, Floats x, Floats y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  static inline Floats scale_by_power(Floats x, Floats shifted) {
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), power));
  }
  static inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static inline float sum(Floats a) {
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
  }
  // Lane i: the sum of vector i.
  static inline Ints sum_each(const Ints (&x)[8]) {
    Ints fours[2];  // half h, lane i of fours[n]: what is in half h of vector 4n + i
    for (int i = 0; i < 2; ++i) {
      const Ints *at = x + 4 * i;
      fours[i] = _mm256_hadd_epi32(_mm256_hadd_epi32(at[0], at[1]), _mm256_hadd_epi32(at[2], at[3]));
    }
    return _mm256_add_epi32(_mm256_permute2x128_si256(fours[0], fours[1], 0x20),
                            _mm256_permute2x128_si256(fours[0], fours[1], 0x31));
  }

#if defined(LLK_DPBUSD_256)
  static constexpr bool kHasByteDot = true;
  template <int kMaxByte>
  static inline Ints dot_bytes(Ints acc, Ints u, Ints s) {
    return LLK_DPBUSD_256(acc, u, s);
  }
  static inline Ints dot_words(Ints acc, Ints a, Ints b) { return LLK_DPWSSD_256(acc, a, b); }
#else
  static constexpr bool kHasByteDot = false;
  // A compiler that knows that integer sums may be taken in any order multiplies first, and adds when no register is left.
  static inline Ints keep(Ints sum) {
    __asm__("" : "+v"(sum));  // any of 32 registers, where there are so many
    return sum;
  }
  template <int kMaxByte>
  static inline Ints dot_bytes(Ints acc, Ints u, Ints s) {
    if constexpr (kMaxByte <= 129) {  // 2 * 129 * 127 fits in 16 bits
      const Ints words = _mm256_maddubs_epi16(u, s);
      return keep(_mm256_add_epi32(acc, _mm256_madd_epi16(words, _mm256_set1_epi16(1))));
    } else {
      // The 16-bit sums of maddubs could overflow: even and odd bytes are widened and multiplied apart.
      const Ints even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)),
                                          _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
      const Ints odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
      return keep(_mm256_add_epi32(acc, _mm256_add_epi32(even, odd)));
    }
  }
  static inline Ints dot_words(Ints acc, Ints a, Ints b) { return keep(_mm256_add_epi32(acc, _mm256_madd_epi16(a, b))); }
#endif
};

}  // namespace
