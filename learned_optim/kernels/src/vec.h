// Vectors of W float lanes on GCC/Clang vector extensions: one source for every instruction set.
//
// Each instruction set compiles its own copy of this header in an unnamed namespace, so that the
// linker can never pick, say, the AVX-512 copy of a function for the baseline kernels.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

// Lanes; hidden units whose gates share the registers; vectors in a tile: 4 * UNITS * V sums.
#if defined(__AVX512F__)
constexpr int W = 16, UNITS = 2, V = 2;
#elif defined(__AVX2__)
constexpr int W = 8, UNITS = 1, V = 2;
#elif defined(__aarch64__)
constexpr int W = 4, UNITS = 1, V = 4;  // 32 registers, as AVX-512 has
#else
constexpr int W = 4, UNITS = 1, V = 2;
#endif
constexpr int TV = V * W;  // coordinates in a tile

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef float vf_unaligned __attribute__((vector_size(4 * W), aligned(4), may_alias));

INLINE vf load(const float* p) { return *(const vf_unaligned*)p; }
INLINE void store(float* p, vf v) { *(vf_unaligned*)p = v; }
INLINE vf set1(float x) { return x - vf{}; }
INLINE vi bits(vf v) { return (vi)v; }
INLINE vf from_bits(vi v) { return (vf)v; }

#if defined(__AVX512F__)
INLINE vf vmin(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vf vmax(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf reciprocal_guess(vf d) { return (vf)_mm512_rcp14_ps((__m512)d); }
INLINE vf reciprocal_root_guess(vf d) { return (vf)_mm512_rsqrt14_ps((__m512)d); }
#elif defined(__AVX2__)
INLINE vf vmin(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vf vmax(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf reciprocal_guess(vf d) { return (vf)_mm256_rcp_ps((__m256)d); }
INLINE vf reciprocal_root_guess(vf d) { return (vf)_mm256_rsqrt_ps((__m256)d); }
#else
INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }
INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
#endif

// -1, 0 or 1.
INLINE vf sign(vf x) {
  const vi one = bits(set1(1.0f));
  return from_bits(one & (vi)(x > 0.0f)) - from_bits(one & (vi)(x < 0.0f));
}

// x inside [low, high]; NaN stays NaN (the second operand wins a comparison that is false; NEON gives
// NaN where either is).
INLINE vf clamp(vf x, float low, float high) {
#if defined(__aarch64__)
  return (vf)vminq_f32((float32x4_t)set1(high), vmaxq_f32((float32x4_t)set1(low), (float32x4_t)x));
#else
  return vmin(set1(high), vmax(set1(low), x));
#endif
}

// 1 / d for 2^-126 < d < 2^126, to the last bit or two: a guess and one Newton step are three
// times as fast as a division.
INLINE vf reciprocal(vf d) {
#if defined(__AVX2__)
  vf r = reciprocal_guess(d);
  return r + r * (1.0f - d * r);
#else
  return 1.0f / d;
#endif
}

// 1 / sqrt(d) for d normal and positive, to 3e-7.
INLINE vf reciprocal_root(vf d) {
#if defined(__AVX2__)
  vf r = reciprocal_root_guess(d);
  return r * (1.5f - (0.5f * d * r) * r);
#elif defined(__aarch64__)
  return 1.0f / (vf)vsqrtq_f32((float32x4_t)d);
#else
  vf r;
  for (int i = 0; i < W; i++) r[i] = 1.0f / __builtin_sqrtf(d[i]);
  return r;
#endif
}

INLINE bool any_lane(vi mask) {  // lanes are 0 or -1
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#elif defined(__aarch64__)
  return vmaxvq_u32((uint32x4_t)mask) != 0;
#else
  int32_t any = 0;
  for (int i = 0; i < W; i++) any |= mask[i];
  return any != 0;
#endif
}

INLINE vi not_finite(vf x) { return (bits(x) & 0x7f800000) == 0x7f800000; }

INLINE float lane_sum(vf v) {
  float lanes[W];
  store(lanes, v);
  for (int width = W / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}

}  // namespace
