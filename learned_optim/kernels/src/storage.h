// Numbers in memory as float32, bfloat16 or float16, in registers always float32. Rounding to the
// nearest, ties to even, as torch converts.
#pragma once
#include "table.h"
#include "vec.h"

namespace {

typedef uint16_t vh __attribute__((vector_size(2 * W)));
typedef uint16_t vh_unaligned __attribute__((vector_size(2 * W), aligned(2), may_alias));

INLINE vf from_bfloat16(vh v) { return from_bits(__builtin_convertvector(v, vi) << 16); }

INLINE vh to_bfloat16(vf v) {
  vi u = bits(v), odd = (u >> 16) & 1;
  vi rounded = (u + 0x7fff + odd) >> 16;
  vi nan = v != v;
  return __builtin_convertvector(nan ? ((u >> 16) | 0x40) : rounded, vh);
}

#if defined(__AVX512F__)
INLINE vf from_float16(vh v) { return (vf)_mm512_cvtph_ps((__m256i)v); }
INLINE vh to_float16(vf v) { return (vh)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__AVX2__)
INLINE vf from_float16(vh v) { return (vf)_mm256_cvtph_ps((__m128i)v); }
INLINE vh to_float16(vf v) { return (vh)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(__aarch64__)
INLINE vf from_float16(vh v) { return (vf)vcvt_f32_f16((float16x4_t)v); }
INLINE vh to_float16(vf v) { return (vh)vcvt_f16_f32((float32x4_t)v); }
#else
// Exponents are rebiased in the integer; numbers below 2^-14, which float16 keeps without a
// leading one, get one from a float added or taken off.
INLINE vf from_float16(vh half) {
  vi h = __builtin_convertvector(half, vi), exponent = h & 0x7c00, shifted = (h & 0x7fff) << 13;
  vf normal = from_bits(shifted + (112 << 23));
  vf small = from_bits(shifted + (113 << 23)) - 6.103515625e-05f;
  vf special = from_bits(shifted | 0x7f800000);
  vf magnitude = exponent == 0 ? small : exponent == 0x7c00 ? special : normal;
  return from_bits(bits(magnitude) | (h & 0x8000) << 16);
}

INLINE vh to_float16(vf v) {
  vi u = bits(v), a = u & 0x7fffffff, sign = (u >> 16) & 0x8000;
  vi normal = (a - (112 << 23) + 0xfff + ((a >> 13) & 1)) >> 13;
  vi small = bits(from_bits(a) + 0.5f) - bits(set1(0.5f));
  vi large = a > 0x7f800000 ? (vi{} + 0x7e00) : (vi{} + 0x7c00);
  vi h = a < (113 << 23) ? small : a >= 0x477ff000 ? large : normal;
  return __builtin_convertvector(h | sign, vh);
}
#endif

inline int size_of(int type) { return type == FLOAT32 ? 4 : 2; }

INLINE vf load_as(int type, const void* p) {
  if (type == FLOAT32) return load((const float*)p);
  vh v = *(const vh_unaligned*)p;
  return type == BFLOAT16 ? from_bfloat16(v) : from_float16(v);
}

INLINE void store_as(int type, void* p, vf v) {
  if (type == FLOAT32)
    store((float*)p, v);
  else
    *(vh_unaligned*)p = type == BFLOAT16 ? to_bfloat16(v) : to_float16(v);
}

INLINE void read_tile_row(int type, const char* from, float* to) {
#pragma GCC unroll 8
  for (int v = 0; v < V; v++)
    store(to + v * W, load_as(type, from + (long)v * W * size_of(type)));
}

INLINE void write_tile_row(int type, const float* from, char* to) {
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) store_as(type, to + (long)v * W * size_of(type), load(from + v * W));
}

// The last tile's, out of the way of all others': clang would clear the padding for each of them.
__attribute__((noinline)) inline void read_part(int type, const char* from, int count, float* to) {
  char padded[4 * TV] = {};
  memcpy(padded, from, (size_t)size_of(type) * count);
  read_tile_row(type, padded, to);
}

__attribute__((noinline)) inline void write_part(int type, const float* from, int count, char* to) {
  char padded[4 * TV];
  write_tile_row(type, from, padded);
  memcpy(to, padded, (size_t)size_of(type) * count);
}

// `count` numbers at most TV, the rest of the TV floats zero.
INLINE void read_row(int type, const char* from, int count, float* to) {
  if (__builtin_expect(count < TV, 0))
    read_part(type, from, count, to);
  else
    read_tile_row(type, from, to);
}

INLINE void write_row(int type, const float* from, int count, char* to) {
  if (__builtin_expect(count < TV, 0))
    write_part(type, from, count, to);
  else
    write_tile_row(type, from, to);
}

}  // namespace
