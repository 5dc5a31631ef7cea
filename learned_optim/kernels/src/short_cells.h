// LSTMs whose state is kept in float16, in numbers of 16 bits: twice as many in a register, and two
// products to an instruction (AVX-512 with VNNI).
//
// h is a multiple of 2^-15, as activations are. Their arguments are exact sums in 32 bits, rounded to
// multiples of 2^-12 and cut to [-8, 8); a sigmoid is looked up by half of its argument. c is float32
// while it moves. An activation is off by 1e-4 in the end, as much as float16 rounds an h of 1/4.
#pragma once
#include "short_weights.h"
#include "storage.h"

#if defined(__AVX512BW__)
#define WITH_SHORT 1
#define APART __attribute__((noinline))  // so that all registers are its own

namespace {

typedef __m512i vs;  // 32 numbers of 16 bits, or 16 pairs of them, or 16 sums

inline bool short_fits(const Shape& shape, int state_type) {
  // One input is the gradient as it is, of any size.
  return shape.cell == LSTM && shape.hidden % 2 == 0 && state_type == FLOAT16 && shape.inputs == 2 &&
         __builtin_cpu_supports("avx512vnni");
}

// A table in registers, and the function that it is of at 32 arguments, multiples of 2^-12.
template <int N>
struct LookUp {
  vs of[N][2];

  INLINE explicit LookUp(const PieceTable<N>& table) {
#pragma GCC unroll 4
    for (int i = 0; i < N; i++)
#pragma GCC unroll 2
      for (int part = 0; part < 2; part++) of[i][part] = _mm512_load_si512(table.of[i] + 32 * part);
  }

  INLINE vs coefficient(int power, vs piece) const {
    return _mm512_permutex2var_epi16(of[power][0], piece, of[power][1]);
  }

  INLINE vs operator()(vs x) const {
    const vs piece = _mm512_srli_epi16(x, 10);
    const vs t = _mm512_xor_si512(_mm512_slli_epi16(x, 6), _mm512_set1_epi16((short)0x8000));
    vs y = coefficient(N - 1, piece);
#pragma GCC unroll 4
    for (int power = N - 2; power > 0; power--)
      y = _mm512_add_epi16(coefficient(power, piece), _mm512_mulhrs_epi16(y, t));
    return _mm512_adds_epi16(coefficient(0, piece), _mm512_mulhrs_epi16(y, t));  // at most 1
  }
};

// 16 of 32 multiples of 2^-15 as float32: the first 16 of what `to_short` joined, or the others.
INLINE vf to_float(vs lifted, bool upper) {
  const vs exponent = _mm512_set1_epi16(0x4b00);  // of 2^23, to which 16 bits add
  const vs bits = upper ? _mm512_unpackhi_epi16(lifted, exponent) : _mm512_unpacklo_epi16(lifted, exponent);
  return (vf)bits * 3.05175781e-05f - 257.0f;
}

// In [-1, 1), as `to_float` takes them.
INLINE vs lift(vs x) { return _mm512_xor_si512(x, _mm512_set1_epi16((short)0x8000)); }

// Multiples of 1 / scale. The order is that of the instruction, which `to_float` undoes.
INLINE vs to_short(vf low, vf high, float scale) {
  return _mm512_packs_epi32(_mm512_cvtps_epi32((__m512)(low * scale)),
                            _mm512_cvtps_epi32((__m512)(high * scale)));
}

INLINE vf load_half(const uint16_t* p) { return from_float16(*(const vh_unaligned*)p); }
INLINE void store_half(uint16_t* p, vf v) { *(vh_unaligned*)p = to_float16(v); }

// The numbers of two units beside each other, coordinate by coordinate, in two registers.
INLINE void put_pairs(vs even, vs odd, vs* pairs) {
  pairs[0] = _mm512_unpacklo_epi16(even, odd);
  pairs[1] = _mm512_unpackhi_epi16(even, odd);
}

template <int H>
INLINE void read_pairs(int hidden, const uint16_t* h, vs* pairs, vf* finite) {
  for (int j = 0; j < (H ? H : hidden); j += 2) {
    vs unit[2];
#pragma GCC unroll 2
    for (int u = 0; u < 2; u++) {
      const uint16_t* at = h + (j + u) * TV;
      const vf low = load_half(at), high = load_half(at + W);
      finite[0] += low;
      finite[1] += high;
      unit[u] = to_short(low, high, (float)ONE);
    }
    put_pairs(unit[0], unit[1], pairs + j);
  }
}

// sum += a[0] * b[0] + a[1] * b[1] in each of 16 lanes, `b` the same in all of them. In assembly: with
// the intrinsic, GCC moves sixteen sums from register to register and to the stack all the time.
INLINE void add_products(vs& sum, vs a, const int32_t* b) {
  asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(a), "m"(*b));
}

INLINE void add_pairs(const int32_t* w, const vs* pairs, int count, vs (&sums)[SHORT_ROWS][V]) {
#pragma GCC unroll 2
  for (int k = 0; k < count; k++) {
    const vs low = pairs[2 * k], high = pairs[2 * k + 1];
#pragma GCC unroll 8
    for (int r = 0; r < SHORT_ROWS; r++) {
      add_products(sums[r][0], low, w + k * SHORT_ROWS + r);
      add_products(sums[r][1], high, w + k * SHORT_ROWS + r);
    }
  }
}

// What the sums of a group begin with: of the features in the first layer, else the bias alone.
template <int INPUTS>
INLINE void begin_sums(const float* w, const float* x, vs (&sums)[SHORT_ROWS][V]) {
#pragma GCC unroll 8
  for (int r = 0; r < SHORT_ROWS; r++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      vf sum = set1(w[INPUTS * SHORT_ROWS + r]);
#pragma GCC unroll 8
      for (int k = 0; k < INPUTS; k++) sum += load(x + k * TV + v * W) * w[k * SHORT_ROWS + r];
      sums[r][v] = _mm512_cvtps_epi32((__m512)sum);
    }
}

// What the activations see of all units, four rows of 32 each. `x`: rows of TV floats, in the first
// layer alone, where INPUTS is not 0.
template <int H, int INPUTS>
APART void short_sums(int hidden_, const ShortLayer& w, const float* x, const vs* pairs, vs* seen) {
  const int hidden = H ? H : hidden_, count = INPUTS ? hidden / 2 : hidden;
#pragma GCC unroll 1
  for (int j = 0; j < hidden; j += 2) {
    const int group = j / 2 * SHORT_ROWS;
    vs sums[SHORT_ROWS][V];
    if constexpr (INPUTS > 0)
      begin_sums<INPUTS>(w.begin + group * (INPUTS + 1), x, sums);
    else
#pragma GCC unroll 8
      for (int r = 0; r < SHORT_ROWS; r++) sums[r][0] = sums[r][1] = _mm512_set1_epi32(w.bias[group + r]);
    add_pairs(w.pairs + group * count, pairs, count, sums);
#pragma GCC unroll 8
    for (int r = 0; r < SHORT_ROWS; r++) {
      const __m128i shift = _mm_cvtsi32_si128(w.shifts[group + r]);
      seen[4 * j + r] =
          _mm512_packs_epi32(_mm512_sra_epi32(sums[r][0], shift), _mm512_sra_epi32(sums[r][1], shift));
    }
  }
}

// Moves h and c of all units, rows of 32 float16; h as pairs too. Two units at a time, as each is a
// chain of instructions that wait for each other.
template <int H>
APART void short_units(int hidden_, const vs* seen, uint16_t* h, vs* pairs, vf* finite) {
  const int hidden = H ? H : hidden_;
  uint16_t* c = h + hidden * TV;
  const LookUp<4> tanh_at(TANH);
  const LookUp<3> sigmoid_at(SIGMOID);
#pragma GCC unroll 1
  for (int j = 0; j < hidden; j += 2) {
    vs open[2], t[2], out[2];
#pragma GCC unroll 2
    for (int u = 0; u < 2; u++) {
      const vs* y = seen + 4 * (j + u);
      const vs g = tanh_at(y[3]);
      const vs added = lift(_mm512_mulhrs_epi16(sigmoid_at(y[0]), g));
      const vs kept = lift(sigmoid_at(y[1]));
      open[u] = sigmoid_at(y[2]);
      vf moved[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) {
        const vf old = load_half(c + (j + u) * TV + v * W);
        moved[v] = old * to_float(kept, v) + to_float(added, v);
        finite[v] += moved[v];
        store_half(c + (j + u) * TV + v * W, moved[v]);
      }
      t[u] = to_short(moved[0], moved[1], (float)ARGUMENT);
    }
#pragma GCC unroll 2
    for (int u = 0; u < 2; u++) {
      out[u] = _mm512_mulhrs_epi16(open[u], tanh_at(t[u]));
      const vs lifted = lift(out[u]);
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) store_half(h + (j + u) * TV + v * W, to_float(lifted, v));
    }
    put_pairs(out[0], out[1], pairs + j);
  }
}

struct ShortScratch {
  vs *seen, *below, *own;  // pairs: of the layer below, and behind them the layer's own
};

inline ShortScratch lay_out_short(const Shape& shape, Arena& arena) {
  ShortScratch scratch;
  scratch.seen = arena.take<vs>(4 * shape.hidden);
  scratch.below = arena.take<vs>(2 * shape.hidden);
  scratch.own = scratch.below + shape.hidden;
  return scratch;
}

// Moves `state`, rows of 32 float16; the output, before any scale. `finite` becomes NaN or infinite
// in the lanes where a number of the state is.
template <int H, int INPUTS>
INLINE void short_step(const Shape& shape, const ShortCells& cells, const ShortScratch& scratch,
                       const float* x, uint16_t* state, vf (&out)[V], vf (&finite)[V]) {
  const int hidden = H ? H : shape.hidden;
  for (int layer = 0; layer < shape.layers; layer++) {
    uint16_t* h = state + 2 * layer * hidden * TV;
    read_pairs<H>(hidden, h, scratch.own, finite);
    if (layer == 0)
      short_sums<H, INPUTS>(hidden, cells.layer[0], x, scratch.own, scratch.seen);
    else
      short_sums<H, 0>(hidden, cells.layer[layer], nullptr, scratch.below, scratch.seen);
    short_units<H>(hidden, scratch.seen, h, scratch.below, finite);
  }
  vs sums[V] = {};
  for (int k = 0; k < hidden / 2; k++) {
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) add_products(sums[v], scratch.below[2 * k + v], cells.head + k);
  }
#pragma GCC unroll 2
  for (int v = 0; v < V; v++)
    out[v] = (vf)_mm512_cvtepi32_ps(sums[v]) * cells.head_scale + cells.head_bias;
}

}  // namespace
#endif
