// Quantized weights: block layouts of GGUF, and their expansion to bytes with scales.
//
// Every type is brought to one form, `Block`: up to 256 consecutive weights of one row as bytes in their natural
// order, with a scale (and where the type has one, a minimum) per group of 16 or 32. The products in matmul.inc know
// only that form. Formats: the ggml project's k-quants and legacy types; checked against the `gguf` package by the
// tests. Included by isa_*.cpp, so no C++ library header here.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "kernel_table.h"

namespace {

constexpr int kBlockWeights = 256;

// Up to 256 weights of a row: x[k] = scale[k / group] * (q[k] - zero) - min[k / group], where min is
// min_scale * mins[] of the k-quants, or float_mins[] of the legacy types.
struct Block {
  alignas(64) uint8_t q[kBlockWeights];
  alignas(64) float scale[16];
  alignas(32) int16_t mins[16];
  float float_mins[8];
  float min_scale;
};

// Vectors of the compiler: what an instruction set lacks is done in pieces, so one text serves all of them.
typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint8_t Bytes32 __attribute__((vector_size(32)));
typedef uint64_t Longs4 __attribute__((vector_size(32)));
typedef uint8_t Bytes8 __attribute__((vector_size(8)));
typedef int8_t SignedBytes8 __attribute__((vector_size(8)));
typedef int16_t Words8 __attribute__((vector_size(16)));
typedef float Floats8 __attribute__((vector_size(32)));

template <class Vector>
inline __attribute__((always_inline)) Vector load_vector(const void *at) {
  Vector value;
  memcpy(&value, at, sizeof value);
  return value;
}
template <class Vector>
inline __attribute__((always_inline)) void store_vector(void *at, Vector value) {
  memcpy(at, &value, sizeof value);
}

inline float half_to_float(uint16_t half) {
#if defined(__F16C__)
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
#else
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  // Shift exponent and mantissa into place and repair the exponent's bias by a product, which is exact and also right
  // for subnormal halves; infinities and NaN keep all exponent bits.
  uint32_t bits = magnitude << 13;
  float value;
  memcpy(&value, &bits, sizeof value);
  value *= 0x1p112f;
  memcpy(&bits, &value, sizeof bits);
  if (magnitude >= 0x7c00u) bits |= 0x7f800000u;
  bits |= sign;
  memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

inline uint16_t load_u16(const uint8_t *at) {
  uint16_t value;
  memcpy(&value, at, sizeof value);
  return value;
}
inline float load_half(const uint8_t *at) { return half_to_float(load_u16(at)); }

inline uint16_t float_to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits >= 0x477ff000u) return sign | 0x7bffu;  // the greatest half: an infinite factor would spoil the block
  if (bits < 0x38800000u) {                        // subnormal: adding 0.5 * 2^-14 * 2^10 rounds in place
    float magnitude;
    memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  const uint32_t odd = (bits >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + odd) >> 13));
}
// As IEEE 754 has it: infinite from halfway beyond the greatest half, and NaN stays.
inline uint16_t float_to_any_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return sign | 0x7e00u;
  return (bits & 0x7fffffffu) >= 0x477ff000u ? static_cast<uint16_t>(sign | 0x7c00u) : float_to_half(value);
}
inline float round_to_half(float value) { return half_to_float(float_to_half(value)); }
inline void store_half(uint8_t *at, float value) {
  const uint16_t half = float_to_half(value);
  memcpy(at, &half, sizeof half);
}

// Eight small numbers times d, as floats.
template <class Bytes>
inline __attribute__((always_inline)) void store_scaled(Bytes values, float d, float *out) {
  store_vector(out, __builtin_convertvector(values, Floats8) * d);
}

#if defined(__AVX2__)
// The first 16 bytes of a block of Q4_K or Q5_K, whose last 12 are these: eight scales and eight minimums, as bytes.
inline __m128i split_scales(__m128i head) {
  const __m128i low = _mm_shuffle_epi8(head, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
  const __m128i six = _mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4)),
                                    _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
  const __m128i high = _mm_shuffle_epi8(head, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
  return _mm_or_si128(six, _mm_and_si128(_mm_srli_epi32(high, 2), _mm_set1_epi8(48)));
}
// The sixteen scales of a block of Q3_K: of scale j the low four bits are a nibble of byte j % 8, and the high two lie in byte
// 8 + j % 4.
[[maybe_unused]] inline __m128i split_scales_q3k(const uint8_t *in) {
  const __m128i nibbles = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(in + 96));
  const __m128i low = _mm_and_si128(_mm_unpacklo_epi64(nibbles, _mm_srli_epi16(nibbles, 4)), _mm_set1_epi8(15));
  int32_t high_bits;
  memcpy(&high_bits, in + 104, sizeof high_bits);
  const __m128i high = _mm_srlv_epi32(_mm_set1_epi32(high_bits), _mm_setr_epi32(0, 2, 4, 6));
  const __m128i six = _mm_or_si128(low, _mm_slli_epi16(_mm_and_si128(high, _mm_set1_epi8(3)), 4));
  return _mm_sub_epi8(six, _mm_set1_epi8(32));
}
#else
// The 6-bit scales and minimums of Q4_K and Q5_K: eight of each in 12 bytes, as bytes.
inline void split_scales_k4(const uint8_t *in, uint64_t *scales, uint64_t *mins) {
  uint32_t word[3];
  memcpy(word, in, sizeof word);
  const uint32_t six = 0x3f3f3f3fu, four = 0x0f0f0f0fu, two = 0x03030303u;
  // Put together in a register: eight bytes loaded from two stores of four would have to wait for both.
  *scales = (word[0] & six) | uint64_t{(word[2] & four) | (((word[0] >> 6) & two) << 4)} << 32;
  *mins = (word[1] & six) | uint64_t{((word[2] >> 4) & four) | (((word[1] >> 6) & two) << 4)} << 32;
}
#endif

// Of a block that begins with two halves, the factors of scales and of minimums.
inline void unpack_scales_k4(const uint8_t *in, Block *out) {
  const float d = load_half(in);
  out->min_scale = load_half(in + 2);
#if defined(__AVX2__)
  const __m128i bytes = split_scales(_mm_loadu_si128(reinterpret_cast<const __m128i *>(in)));
  _mm256_store_ps(out->scale, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)), _mm256_set1_ps(d)));
  _mm_store_si128(reinterpret_cast<__m128i *>(out->mins), _mm_cvtepu8_epi16(_mm_unpackhi_epi64(bytes, bytes)));
#else
  uint64_t scales, mins;
  split_scales_k4(in + 4, &scales, &mins);
  store_scaled(load_vector<Bytes8>(&scales), d, out->scale);
  store_vector(out->mins, __builtin_convertvector(load_vector<Bytes8>(&mins), Words8));
#endif
}

// Bit l of 32 as byte l: 16 where it is set.
inline __attribute__((always_inline)) Bytes32 fifth_bits(const uint8_t *in) {
  const uint64_t all = 0x0101010101010101u, each = 0x8040201008040201u;
  const Longs4 spread = {in[0] * all, in[1] * all, in[2] * all, in[3] * all};
  const Longs4 chosen = spread & each;
  return reinterpret_cast<Bytes32>(reinterpret_cast<Bytes32>(chosen) != 0) & 16;
}

// 16 bytes of nibbles as 32 numbers: the low halves, then the high ones.
inline __attribute__((always_inline)) void store_nibbles(const uint8_t *in, uint8_t *q) {
  const Bytes16 packed = load_vector<Bytes16>(in);
  store_vector<Bytes16>(q, packed & 15);
  store_vector<Bytes16>(q + 16, packed >> 4);
}

// Each type: kId, kBlockLength weights in kBlockBytes, groups of kGroup, the zero of its bytes and their greatest value,
// kHasMins, whether it is a legacy type (activations then have a scale per 32 and not per 256), and unpack(), or
// unpack_bytes() and unpack_scales().

struct TypeQ4K {
  static constexpr int kId = LLK_TYPE_Q4_K, kBlockLength = 256, kBlockBytes = 144, kGroup = 32, kZero = 0, kMaxByte = 15;
  static constexpr bool kHasMins = true, kIsLegacy = false;
  static inline void unpack_bytes(const uint8_t *in, uint8_t *q) {
    for (int pair = 0; pair < 4; ++pair) {
      const Bytes32 packed = load_vector<Bytes32>(in + 16 + pair * 32);
      store_vector<Bytes32>(q + pair * 64, packed & 15);
      store_vector<Bytes32>(q + pair * 64 + 32, packed >> 4);
    }
  }
  static inline void unpack_scales(const uint8_t *in, Block *out) { unpack_scales_k4(in, out); }
};

struct TypeQ5K {
  static constexpr int kId = LLK_TYPE_Q5_K, kBlockLength = 256, kBlockBytes = 176, kGroup = 32, kZero = 0, kMaxByte = 31;
  static constexpr bool kHasMins = true, kIsLegacy = false;
  static inline void unpack_bytes(const uint8_t *in, uint8_t *q) {
    Bytes32 high = load_vector<Bytes32>(in + 16);
    for (int pair = 0; pair < 4; ++pair) {
      const Bytes32 packed = load_vector<Bytes32>(in + 48 + pair * 32);
      store_vector<Bytes32>(q + pair * 64, (packed & 15) | ((high & 1) << 4));
      store_vector<Bytes32>(q + pair * 64 + 32, (packed >> 4) | ((high & 2) << 3));
      high >>= 2;
    }
  }
  static inline void unpack_scales(const uint8_t *in, Block *out) { unpack_scales_k4(in, out); }
};

struct TypeQ6K {
  static constexpr int kId = LLK_TYPE_Q6_K, kBlockLength = 256, kBlockBytes = 210, kGroup = 16, kZero = 32, kMaxByte = 63;
  static constexpr bool kHasMins = false, kIsLegacy = false;
  static inline void unpack_scales(const uint8_t *in, Block *out) {
    const float d = load_half(in + 208);
    store_scaled(load_vector<SignedBytes8>(in + 192), d, out->scale);
    store_scaled(load_vector<SignedBytes8>(in + 200), d, out->scale + 8);
  }
  static inline void unpack_bytes(const uint8_t *in, uint8_t *out) {
    for (int half = 0; half < 2; ++half) {
      const Bytes32 first = load_vector<Bytes32>(in + half * 64), second = load_vector<Bytes32>(in + half * 64 + 32);
      const Bytes32 high = load_vector<Bytes32>(in + 128 + half * 32);
      uint8_t *q = out + half * 128;
      store_vector<Bytes32>(q, (first & 15) | ((high & 3) << 4));
      store_vector<Bytes32>(q + 32, (second & 15) | ((high & 12) << 2));
      store_vector<Bytes32>(q + 64, (first >> 4) | (high & 48));
      store_vector<Bytes32>(q + 96, (second >> 4) | ((high & 192) >> 2));
    }
  }
};

struct TypeQ3K {
  static constexpr int kId = LLK_TYPE_Q3_K, kBlockLength = 256, kBlockBytes = 110, kGroup = 16, kZero = 4, kMaxByte = 7;
  static constexpr bool kHasMins = false, kIsLegacy = false;
  static inline void unpack_scales(const uint8_t *in, Block *out) {
    const uint8_t *packed = in + 96;
    const float d = load_half(in + 108);
    for (int j = 0; j < 16; ++j) {
      const int low = (packed[j % 8] >> (j < 8 ? 0 : 4)) & 15;
      const int high = (packed[8 + j % 4] >> (2 * (j / 4))) & 3;
      out->scale[j] = d * static_cast<float>((low | (high << 4)) - 32);
    }
  }
  static inline void unpack_bytes(const uint8_t *in, uint8_t *q) {
    Bytes32 third = load_vector<Bytes32>(in);
    for (int half = 0; half < 2; ++half) {
      Bytes32 low = load_vector<Bytes32>(in + 32 + half * 32);
      for (int part = 0; part < 4; ++part) {
        store_vector<Bytes32>(q + half * 128 + part * 32, (low & 3) | ((third & 1) << 2));
        low >>= 2;
        third >>= 1;
      }
    }
  }
};

struct TypeQ2K {
  static constexpr int kId = LLK_TYPE_Q2_K, kBlockLength = 256, kBlockBytes = 84, kGroup = 16, kZero = 0, kMaxByte = 3;
  static constexpr bool kHasMins = true, kIsLegacy = false;
  static inline void unpack_scales(const uint8_t *in, Block *out) {
    const float d = load_half(in + 80);
    out->min_scale = load_half(in + 82);
    for (int half = 0; half < 2; ++half) {
      const Bytes8 packed = load_vector<Bytes8>(in + 8 * half);
      store_scaled<Bytes8>(packed & 15, d, out->scale + 8 * half);
      store_vector(out->mins + 8 * half, __builtin_convertvector(packed >> 4, Words8));
    }
  }
  static inline void unpack_bytes(const uint8_t *in, uint8_t *q) {
    for (int half = 0; half < 2; ++half) {
      Bytes32 low = load_vector<Bytes32>(in + 16 + half * 32);
      for (int part = 0; part < 4; ++part) {
        store_vector<Bytes32>(q + half * 128 + part * 32, low & 3);
        low >>= 2;
      }
    }
  }
};

// Legacy types: blocks of 32, up to eight of them to a Block.

struct TypeQ80 {
  static constexpr int kId = LLK_TYPE_Q8_0, kBlockLength = 32, kBlockBytes = 34, kGroup = 32, kZero = 128, kMaxByte = 255;
  static constexpr bool kHasMins = false, kIsLegacy = true;
  static inline void unpack(const uint8_t *in, uint8_t *q, float *scale, float *) {
    *scale = load_half(in);
    store_vector<Bytes32>(q, load_vector<Bytes32>(in + 2) ^ 0x80);
  }
};

struct TypeQ40 {
  static constexpr int kId = LLK_TYPE_Q4_0, kBlockLength = 32, kBlockBytes = 18, kGroup = 32, kZero = 8, kMaxByte = 15;
  static constexpr bool kHasMins = false, kIsLegacy = true;
  static inline void unpack(const uint8_t *in, uint8_t *q, float *scale, float *) {
    *scale = load_half(in);
    store_nibbles(in + 2, q);
  }
};

struct TypeQ41 {
  static constexpr int kId = LLK_TYPE_Q4_1, kBlockLength = 32, kBlockBytes = 20, kGroup = 32, kZero = 0, kMaxByte = 15;
  static constexpr bool kHasMins = true, kIsLegacy = true;
  static inline void unpack(const uint8_t *in, uint8_t *q, float *scale, float *min) {
    *scale = load_half(in);
    *min = -load_half(in + 2);
    store_nibbles(in + 4, q);
  }
};

struct TypeQ50 {
  static constexpr int kId = LLK_TYPE_Q5_0, kBlockLength = 32, kBlockBytes = 22, kGroup = 32, kZero = 16, kMaxByte = 31;
  static constexpr bool kHasMins = false, kIsLegacy = true;
  static inline void unpack(const uint8_t *in, uint8_t *q, float *scale, float *) {
    *scale = load_half(in);
    store_nibbles(in + 6, q);
    store_vector<Bytes32>(q, load_vector<Bytes32>(q) | fifth_bits(in + 2));
  }
};

struct TypeQ51 {
  static constexpr int kId = LLK_TYPE_Q5_1, kBlockLength = 32, kBlockBytes = 24, kGroup = 32, kZero = 0, kMaxByte = 31;
  static constexpr bool kHasMins = true, kIsLegacy = true;
  static inline void unpack(const uint8_t *in, uint8_t *q, float *scale, float *min) {
    *scale = load_half(in);
    *min = -load_half(in + 2);
    store_nibbles(in + 8, q);
    store_vector<Bytes32>(q, load_vector<Bytes32>(q) | fifth_bits(in + 4));
  }
};

#if defined(__AVX2__)
template <class T>
struct LegacyLayout {
  static constexpr bool kHasNibbles = T::kMaxByte <= 31, kHasFifthBit = T::kMaxByte == 31;
  static constexpr int kBits = T::kHasMins ? 4 : 2;                     // where the fifth bits begin
  static constexpr int kWeights = kBits + (kHasFifthBit ? 4 : 0);       // where the nibbles or bytes begin
};

// A half of each of eight blocks of a legacy type.
template <class T>
inline __m256 load_eight_halves(const uint8_t *in) {
  constexpr int B = T::kBlockBytes;
  const auto at = [in](int block) { return static_cast<short>(load_u16(in + block * B)); };
  return _mm256_cvtph_ps(_mm_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)));
}
#endif

}  // namespace
