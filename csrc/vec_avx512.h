// 512-bit vectors for the bodies in matmul.inc, with the processor's byte products where it has them.
#pragma once

#include <immintrin.h>
#include <stdint.h>

namespace {

struct Vec512 {
  using Ints = __m512i;
  using Floats = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kTileVectors = 3, kTileColumns = 4, kSingleColumns = 8;  // 12 sums and 12 dots of 32 registers

  static inline Ints zero_ints() { return _mm512_setzero_si512(); }
  static inline Ints set_ints(int32_t value) { return _mm512_set1_epi32(value); }
  static inline Ints load_ints(const void *at) { return _mm512_loadu_si512(at); }
  static inline Floats zero_floats() { return _mm512_setzero_ps(); }
  static inline Floats set_floats(float value) { return _mm512_set1_ps(value); }
  static inline Floats load_floats(const float *at) { return _mm512_loadu_ps(at); }
  static inline Floats load_halves(const void *at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i *>(at)));
  }
  static inline void store_halves(void *at, Floats value) {
    _mm256_storeu_si256(static_cast<__m256i *>(at), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  static inline Floats load_bytes(const void *at) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i *>(at))));
  }
  static inline Floats load_bfloats(const void *at) {
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i *>(at)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
  }
  static inline float sum(Floats a) { return _mm512_reduce_add_ps(a); }
  static inline void store_floats(float *at, Floats value) { _mm512_storeu_ps(at, value); }
  static inline Floats to_floats(Ints value) { return _mm512_cvtepi32_ps(value); }
  static inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static inline Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static inline Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
  static inline Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  static inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static inline Floats choose_less(Floats a, Floats b, Floats x, Floats y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
  }
  static inline Floats scale_by_power(Floats x, Floats shifted) {
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), power));
  }
  static inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }

  // Lane i: the sum of vector i.
  static inline Ints sum_each(const Ints (&x)[16]) {
    Ints fours[4];  // quarter q, lane i of fours[n]: what is in quarter q of vector 4n + i
    for (int i = 0; i < 4; ++i) {
      const Ints *at = x + 4 * i;
      const Ints one = _mm512_add_epi32(_mm512_unpacklo_epi32(at[0], at[1]), _mm512_unpackhi_epi32(at[0], at[1]));
      const Ints two = _mm512_add_epi32(_mm512_unpacklo_epi32(at[2], at[3]), _mm512_unpackhi_epi32(at[2], at[3]));
      fours[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(one, two), _mm512_unpackhi_epi64(one, two));
    }
    Ints eights[2];
    for (int i = 0; i < 2; ++i) {
      eights[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(fours[2 * i], fours[2 * i + 1], 0x44),
                                   _mm512_shuffle_i32x4(fours[2 * i], fours[2 * i + 1], 0xee));
    }
    return _mm512_add_epi32(_mm512_shuffle_i32x4(eights[0], eights[1], 0x88),
                            _mm512_shuffle_i32x4(eights[0], eights[1], 0xdd));
  }

#if defined(__AVX512VNNI__)
  static constexpr bool kHasByteDot = true;
  template <int kMaxByte>
  static inline Ints dot_bytes(Ints acc, Ints u, Ints s) {
    return _mm512_dpbusd_epi32(acc, u, s);
  }
  static inline Ints dot_words(Ints acc, Ints a, Ints b) { return _mm512_dpwssd_epi32(acc, a, b); }
#else
  static constexpr bool kHasByteDot = false;
  // As Vec256's.
  static inline Ints keep(Ints sum) {
    __asm__("" : "+v"(sum));
    return sum;
  }
  template <int kMaxByte>
  static inline Ints dot_bytes(Ints acc, Ints u, Ints s) {
    if constexpr (kMaxByte <= 129) {  // 2 * 129 * 127 fits in 16 bits
      const Ints words = _mm512_maddubs_epi16(u, s);
      return keep(_mm512_add_epi32(acc, _mm512_madd_epi16(words, _mm512_set1_epi16(1))));
    } else {
      // The 16-bit sums of maddubs could overflow: even and odd bytes are widened and multiplied apart.
      const Ints even = _mm512_madd_epi16(_mm512_and_si512(u, _mm512_set1_epi16(255)),
                                          _mm512_srai_epi16(_mm512_slli_epi16(s, 8), 8));
      const Ints odd = _mm512_madd_epi16(_mm512_srli_epi16(u, 8), _mm512_srai_epi16(s, 8));
      return keep(_mm512_add_epi32(acc, _mm512_add_epi32(even, odd)));
    }
  }
  static inline Ints dot_words(Ints acc, Ints a, Ints b) { return keep(_mm512_add_epi32(acc, _mm512_madd_epi16(a, b))); }
#endif
};

}  // namespace
