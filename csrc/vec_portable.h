// Four lanes of plain C++ for the bodies in matmul.inc: right everywhere, and what the compiler makes of it.
#pragma once

#include <stdint.h>
#include <string.h>

#include "quant.h"

namespace {

struct VecPortable {
  typedef int32_t Ints __attribute__((vector_size(16)));
  typedef float Floats __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kTileVectors = 1, kTileColumns = 4, kSingleColumns = 4;
  static constexpr bool kHasByteDot = false;

  static inline Ints zero_ints() { return Ints{0, 0, 0, 0}; }
  static inline Ints set_ints(int32_t value) { return Ints{value, value, value, value}; }
  static inline Ints load_ints(const void *at) {
    Ints value;
    memcpy(&value, at, sizeof value);
    return value;
  }
  static inline Floats zero_floats() { return Floats{0, 0, 0, 0}; }
  static inline Floats set_floats(float value) { return Floats{value, value, value, value}; }
  static inline Floats set_pair(float low, float high) { return Floats{low, low, high, high}; }
  static inline Floats load_floats(const float *at) {
    Floats value;
    memcpy(&value, at, sizeof value);
    return value;
  }
  static inline Floats load_halves(const void *at) {
    const uint8_t *bytes = static_cast<const uint8_t *>(at);
    return Floats{load_half(bytes), load_half(bytes + 2), load_half(bytes + 4), load_half(bytes + 6)};
  }
  static inline void store_halves(void *at, Floats value) {
    uint16_t halves[4];
    for (int i = 0; i < 4; ++i) halves[i] = float_to_any_half(value[i]);
    memcpy(at, halves, sizeof halves);
  }
  static inline Floats load_bytes(const void *at) {
    const int8_t *bytes = static_cast<const int8_t *>(at);
    return Floats{static_cast<float>(bytes[0]), static_cast<float>(bytes[1]), static_cast<float>(bytes[2]),
                  static_cast<float>(bytes[3])};
  }
  static inline Floats load_bfloats(const void *at) {
    uint16_t bits[4];
    memcpy(bits, at, sizeof bits);
    const Ints words = {bits[0], bits[1], bits[2], bits[3]};
    return (Floats)(words << 16);
  }
  static inline void store_floats(float *at, Floats value) { memcpy(at, &value, sizeof value); }
  static inline Floats to_floats(Ints value) { return __builtin_convertvector(value, Floats); }
  static inline Floats add(Floats a, Floats b) { return a + b; }
  static inline Floats subtract(Floats a, Floats b) { return a - b; }
  static inline Floats divide(Floats a, Floats b) { return a / b; }
  static inline Floats min(Floats a, Floats b) { return a < b ? a : b; }
  static inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
  static inline Floats choose_less(Floats a, Floats b, Floats x, Floats y) { return a < b ? x : y; }
  static inline Floats scale_by_power(Floats x, Floats shifted) {
    return (Floats)((Ints)x + ((Ints)shifted << 23));
  }
  static inline Floats multiply(Floats a, Floats b) { return a * b; }
  static inline Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
  static inline float sum(Floats a) { return (a[0] + a[1]) + (a[2] + a[3]); }
  // Lane i: the sum of vector i.
  static inline Ints sum_each(const Ints (&x)[4]) {
    Ints sums;
    for (int i = 0; i < 4; ++i) sums[i] = (x[i][0] + x[i][1]) + (x[i][2] + x[i][3]);
    return sums;
  }

  template <int kMaxByte>
  static inline Ints dot_bytes(Ints acc, Ints u, Ints s) {
    uint8_t unsigned_bytes[16];
    int8_t signed_bytes[16];
    memcpy(unsigned_bytes, &u, 16);
    memcpy(signed_bytes, &s, 16);
    int32_t sums[4];
    for (int lane = 0; lane < 4; ++lane) {
      sums[lane] = 0;
      for (int i = 4 * lane; i < 4 * lane + 4; ++i) sums[lane] += unsigned_bytes[i] * signed_bytes[i];
    }
    return acc + load_ints(sums);
  }
  static inline Ints dot_words(Ints acc, Ints a, Ints b) {
    int16_t left[8], right[8];
    memcpy(left, &a, 16);
    memcpy(right, &b, 16);
    int32_t sums[4];
    for (int lane = 0; lane < 4; ++lane) {
      sums[lane] = left[2 * lane] * right[2 * lane] + left[2 * lane + 1] * right[2 * lane + 1];
    }
    return acc + load_ints(sums);
  }
};

}  // namespace
