// Sixteen floats in as many registers as they take: quantize.inc is one text for all widths, and adds up in one order.
//
// A vector type wider than the registers would do, but GCC keeps such vectors in memory and compares them number by
// number: on AVX2 that is no faster than without it.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kPartLanes = 16;
#elif defined(__AVX__)
constexpr int kPartLanes = 8;
#else
constexpr int kPartLanes = 4;
#endif

constexpr int kNumLanes = 16, kNumParts = kNumLanes / kPartLanes;
typedef float Part __attribute__((vector_size(kPartLanes * 4)));
typedef float HalfLanes __attribute__((vector_size(32)));
typedef float QuarterLanes __attribute__((vector_size(16)));

// value < low ? low : value, and value > high ? high : value.
inline Part at_least(Part value, Part low) {
#if defined(__AVX512F__)
  return _mm512_max_ps(low, value);
#elif defined(__AVX__)
  return _mm256_max_ps(low, value);
#else
  return value < low ? low : value;
#endif
}

inline Part at_most(Part value, Part high) {
#if defined(__AVX512F__)
  return _mm512_min_ps(high, value);
#elif defined(__AVX__)
  return _mm256_min_ps(high, value);
#else
  return value > high ? high : value;
#endif
}

struct Lanes {
  Part parts[kNumParts];

  static Lanes of(float value) {
    Lanes out;
    for (int p = 0; p < kNumParts; ++p) out.parts[p] = Part{} + value;
    return out;
  }
  static Lanes load(const float *from) {
    Lanes out;
    memcpy(&out, from, sizeof out);
    return out;
  }
};

template <typename Function>
inline Lanes by_parts(const Lanes &a, const Lanes &b, Function function) {
  Lanes out;
  for (int p = 0; p < kNumParts; ++p) out.parts[p] = function(a.parts[p], b.parts[p]);
  return out;
}

inline Lanes operator+(const Lanes &a, const Lanes &b) {
  return by_parts(a, b, [](Part x, Part y) { return x + y; });
}
inline Lanes operator-(const Lanes &a, const Lanes &b) {
  return by_parts(a, b, [](Part x, Part y) { return x - y; });
}
inline Lanes operator*(const Lanes &a, const Lanes &b) {
  return by_parts(a, b, [](Part x, Part y) { return x * y; });
}
inline Lanes clamp(const Lanes &value, float low, float high) {
  const Lanes raised = by_parts(value, Lanes::of(low), [](Part x, Part y) { return at_least(x, y); });
  return by_parts(raised, Lanes::of(high), [](Part x, Part y) { return at_most(x, y); });
}

// Lanes four by four: what is left of the sixteen when halves and quarters are added.
inline QuarterLanes fold(const Lanes &value) {
  HalfLanes halves[2];
  memcpy(halves, &value, sizeof halves);
  const HalfLanes half = halves[0] + halves[1];
  QuarterLanes quarters[2];
  memcpy(quarters, &half, sizeof quarters);
  return quarters[0] + quarters[1];
}

inline float sum_lanes(const Lanes &value) {
  const QuarterLanes quarter = fold(value);
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

}  // namespace
