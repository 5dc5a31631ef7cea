// What LSTMs in 16 bits are made of, on AVX-512: 32 numbers in a register. `short_avx2.h`
// has the same for AVX2.
#pragma once
#include "cpu.h"
#include "short_tables.h"
#include "storage.h"

#define WITH_SHORT 1

namespace {

typedef __m512i vs;       // TV numbers of 16 bits, or half as many pairs of them, or sums
typedef __mmask32 Lanes;  // some of TV

constexpr int SUM_ROWS = 8;  // rows of TV sums that share the registers

// Whether one instruction multiplies pairs and adds the products up (VNNI).
inline bool has_dot_products() { return has_vnni_512(); }

INLINE vs fill(short x) { return _mm512_set1_epi16(x); }

// Products of multiples of 2^-15, rounded.
INLINE vs times(vs a, vs b) { return _mm512_mulhrs_epi16(a, b); }

INLINE vs plus(vs a, vs b) { return _mm512_add_epi16(a, b); }
INLINE vs plus_cut(vs a, vs b) { return _mm512_adds_epi16(a, b); }  // at the ends of 16 bits

// Sums, of 32 bits.
INLINE vs to_sums(vf x) { return _mm512_cvtps_epi32((__m512)x); }
INLINE vf from_sums(vs x) { return (vf)_mm512_cvtepi32_ps(x); }
INLINE vs fill_sums(int32_t x) { return _mm512_set1_epi32(x); }

// Sums cut off at the ends of 16 bits, in the order of the instruction, which the two after it undo.
INLINE vs join(vs low, vs high) { return _mm512_packs_epi32(low, high); }
INLINE vs beside(vs a, vs b) { return _mm512_unpacklo_epi16(a, b); }
INLINE vs beside_upper(vs a, vs b) { return _mm512_unpackhi_epi16(a, b); }

INLINE vs shift_sums(vs x, int32_t bits) { return _mm512_sra_epi32(x, _mm_cvtsi32_si128(bits)); }

// sums += a[0] * w[0] + a[1] * w[1] in each of TV lanes, `w` the same in all of them. DOT: by one
// instruction, in assembly: with the intrinsic, GCC moves sixteen sums from register to register and to
// the stack all the time.
template <bool DOT>
INLINE void add_products(vs (&sums)[V], const vs* pairs, const int32_t* w) {
#pragma GCC unroll 2
  for (int v = 0; v < V; v++)
    if constexpr (DOT)
      asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sums[v]) : "v"(pairs[v]), "m"(*w));
    else
      sums[v] = _mm512_add_epi32(sums[v], _mm512_madd_epi16(pairs[v], _mm512_set1_epi32(*w)));
}

// Of arguments that are multiples of 2^-12; the sigmoid of twice its argument.
struct Activations {
  vs tanh_of[4][2], sigmoid_of[3][2];

  INLINE Activations() {
    read(TANH, tanh_of);
    read(SIGMOID, sigmoid_of);
  }

  template <int N>
  INLINE static void read(const PieceTable<N, 64>& table, vs (&of)[N][2]) {
#pragma GCC unroll 4
    for (int i = 0; i < N; i++)
#pragma GCC unroll 2
      for (int part = 0; part < 2; part++) of[i][part] = _mm512_load_si512(table.of[i] + 32 * part);
  }

  template <int N>
  INLINE vs look_up(const vs (&of)[N][2], vs x) const {
    const vs piece = _mm512_srli_epi16(x, 10), t = _mm512_slli_epi16(x, 5);
    vs y = _mm512_permutex2var_epi16(of[N - 1][0], piece, of[N - 1][1]);
#pragma GCC unroll 4
    for (int power = N - 2; power >= 0; power--) {
      const vs coefficient = _mm512_permutex2var_epi16(of[power][0], piece, of[power][1]);
      y = power ? plus(coefficient, times(y, t)) : plus_cut(coefficient, times(y, t));  // below 1
    }
    return y;
  }

  INLINE vs tanh(vs x) const { return look_up(tanh_of, x); }
  INLINE vs sigmoid(vs x) const { return look_up(sigmoid_of, x); }
};

// A row of TV float16, W numbers a vector: joined first, as to convert into memory takes twice as long.
INLINE void store_halves(uint16_t* p, const vf (&x)[V]) {
  const vs lower = _mm512_castsi256_si512((__m256i)to_float16(x[0]));
  _mm512_storeu_si512(p, _mm512_inserti64x4(lower, (__m256i)to_float16(x[1]), 1));
}

INLINE Lanes first_lanes(int count) { return count == TV ? ~0u : (1u << count) - 1; }

// Of TV coordinates, those that have no lane in `bad`, W coordinates to a vector.
INLINE Lanes sound_lanes(const vi (&bad)[V]) {
  Lanes sound = 0;
#pragma GCC unroll 2
  for (int v = 0; v < V; v++)
    sound |= (Lanes)_mm512_testn_epi32_mask((__m512i)bad[v], (__m512i)bad[v]) << (v * W);
  return sound;
}

INLINE bool all_lanes(Lanes lanes) { return lanes == ~0u; }

INLINE vs read_whole(const uint16_t* p) { return _mm512_loadu_si512(p); }
INLINE void write_whole(uint16_t* p, vs x) { _mm512_storeu_si512(p, x); }

// `count` numbers in memory, at most TV; what is read has zeros behind them. Apart from whole ones,
// as a masked store costs tens of cycles.
INLINE vs read_some(const uint16_t* p, int count) { return _mm512_maskz_loadu_epi16(first_lanes(count), p); }
INLINE void write_some(uint16_t* p, int count, vs x) { _mm512_mask_storeu_epi16(p, first_lanes(count), x); }

// Twice the largest size so far, in each lane, of float16; and whether one is not finite.
INLINE vs largest(vs before, vs halves) { return _mm512_max_epu16(before, _mm512_slli_epi16(halves, 1)); }
INLINE bool any_not_finite(vs largest) {
  return _mm512_cmpge_epu16_mask(largest, fill((short)0xf800)) != 0;
}

INLINE vs choose(Lanes lanes, vs those, vs others) { return _mm512_mask_blend_epi16(lanes, others, those); }

}  // namespace
