// What LSTMs in 16 bits are made of, on AVX2: 16 numbers in a register. `short_avx512.h` has the same
// for AVX-512, and says what is what.
#pragma once
#include "cpu.h"
#include "short_tables.h"
#include "storage.h"

#define WITH_SHORT 1

// Whether the assembler that comes with the compiler knows AVX-VNNI.
#if defined(__clang__)
#define WITH_VEX_DOT_PRODUCTS (__clang_major__ >= 12)
#else
#define WITH_VEX_DOT_PRODUCTS (__GNUC__ >= 11)
#endif

namespace {

typedef __m256i vs;
typedef __m256i Lanes;  // each of 16 bits, all of them set or none

constexpr int SUM_ROWS = 4;

inline bool has_dot_products() {
#if WITH_VEX_DOT_PRODUCTS
  return has_vnni_256();
#else
  return false;
#endif
}

INLINE vs fill(short x) { return _mm256_set1_epi16(x); }
INLINE vs times(vs a, vs b) { return _mm256_mulhrs_epi16(a, b); }
INLINE vs plus(vs a, vs b) { return _mm256_add_epi16(a, b); }
INLINE vs plus_cut(vs a, vs b) { return _mm256_adds_epi16(a, b); }
INLINE vs to_sums(vf x) { return _mm256_cvtps_epi32((__m256)x); }
INLINE vf from_sums(vs x) { return (vf)_mm256_cvtepi32_ps(x); }
INLINE vs fill_sums(int32_t x) { return _mm256_set1_epi32(x); }
INLINE vs join(vs low, vs high) { return _mm256_packs_epi32(low, high); }
INLINE vs beside(vs a, vs b) { return _mm256_unpacklo_epi16(a, b); }
INLINE vs beside_upper(vs a, vs b) { return _mm256_unpackhi_epi16(a, b); }
INLINE vs shift_sums(vs x, int32_t bits) { return _mm256_sra_epi32(x, _mm_cvtsi32_si128(bits)); }

template <bool DOT>
INLINE void add_products(vs (&sums)[V], const vs* pairs, const int32_t* w) {
  const vs all = _mm256_set1_epi32(*w);
#pragma GCC unroll 2
  for (int v = 0; v < V; v++)
#if WITH_VEX_DOT_PRODUCTS
    if constexpr (DOT)
      asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sums[v]) : "x"(pairs[v]), "x"(all));
    else
#endif
      sums[v] = _mm256_add_epi32(sums[v], _mm256_madd_epi16(pairs[v], all));
}

// In a register of its own, and not seen through: GCC would make shifts and sums of its products.
INLINE vs opaque(short x) {
  vs all = fill(x);
  asm("" : "+x"(all));
  return all;
}

// Looked up by the size of an argument, as a register has room for eight coefficients only.
struct Activations {
  vs tanh_of[5], sigmoid_of[4];
  const vs per_size = opaque(PIECES_PER_SIZE), half = opaque(PIECES_PER_SIZE / 2), both = opaque(0x0202);

  INLINE Activations() {
    read(TANH_OF_SIZE, tanh_of);
    read(SIGMOID_OF_SIZE, sigmoid_of);
  }

  template <int N>
  INLINE static void read(const PieceTable<N, 8>& table, vs (&of)[N]) {
#pragma GCC unroll 5
    for (int i = 0; i < N; i++)
      of[i] = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)table.of[i]));
  }

  // The odd function that a table is of.
  template <int N>
  INLINE vs look_up(const vs (&of)[N], vs x) const {
    const vs size = _mm256_min_epu16(_mm256_abs_epi16(x), fill(LARGEST_SIZE));
    const vs piece = _mm256_mulhi_epu16(size, per_size), t = _mm256_mullo_epi16(size, half);
    const vs at = plus(_mm256_mullo_epi16(piece, both), fill(0x0100));  // both bytes of a coefficient
    vs y = _mm256_shuffle_epi8(of[N - 1], at);
#pragma GCC unroll 4
    for (int power = N - 2; power >= 0; power--) y = plus(_mm256_shuffle_epi8(of[power], at), times(y, t));
    return _mm256_sign_epi16(y, x);
  }

  INLINE vs tanh(vs x) const { return look_up(tanh_of, x); }
  INLINE vs sigmoid(vs x) const { return plus_cut(look_up(sigmoid_of, x), fill(0x4000)); }
};

INLINE void store_halves(uint16_t* p, const vf (&x)[V]) {
  const __m128i lower = (__m128i)to_float16(x[0]), upper = (__m128i)to_float16(x[1]);
  _mm256_storeu_si256((__m256i*)p, _mm256_set_m128i(upper, lower));
}

INLINE Lanes sound_lanes(const vi (&bad)[V]) {
  const __m256i none = _mm256_setzero_si256();
  const vs joined = _mm256_packs_epi32((__m256i)bad[0], (__m256i)bad[1]);
  return _mm256_cmpeq_epi16(_mm256_permute4x64_epi64(joined, 0xd8), none);
}

INLINE bool all_lanes(Lanes lanes) { return _mm256_movemask_epi8(lanes) == -1; }

INLINE vs read_whole(const uint16_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
INLINE void write_whole(uint16_t* p, vs x) { _mm256_storeu_si256((__m256i*)p, x); }

INLINE vs read_some(const uint16_t* p, int count) {
  uint16_t padded[TV] = {};
  memcpy(padded, p, sizeof(uint16_t) * count);
  return read_whole(padded);
}

INLINE void write_some(uint16_t* p, int count, vs x) {
  uint16_t padded[TV];
  write_whole(padded, x);
  memcpy(p, padded, sizeof(uint16_t) * count);
}

INLINE vs largest(vs before, vs halves) { return _mm256_max_epu16(before, _mm256_slli_epi16(halves, 1)); }
INLINE bool any_not_finite(vs largest) {
  const vs over = _mm256_subs_epu16(largest, fill((short)0xf7ff));
  return !_mm256_testz_si256(over, over);
}

INLINE vs choose(Lanes lanes, vs those, vs others) { return _mm256_blendv_epi8(others, those, lanes); }

}  // namespace
