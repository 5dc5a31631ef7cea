// LSTMs whose state is kept in float16, in numbers of 16 bits: twice as many in a register, and two
// products to an instruction.
//
// h is a multiple of 2^-15, as activations are. Their arguments are exact sums in 32 bits, rounded to
// multiples of 2^-12 and cut to [-8, 8); a sigmoid is looked up by half of its argument. c is float32
// while it moves. An activation is off by 1e-4 in the end, as much as float16 rounds an h of 1/4.
#pragma once
#include "short_weights.h"
#include "strips.h"
#if defined(__AVX512BW__)
#include "short_avx512.h"
#elif defined(__AVX2__)
#include "short_avx2.h"
#endif

#if defined(WITH_SHORT)
#define APART __attribute__((noinline))  // so that all registers are its own

extern bool learned_optim_dot_products;  // false: as on a CPU that has none

namespace {

inline bool short_fits(const Shape& shape, int state_type) {
  // One input is the gradient as it is, of any size.
  return shape.cell == LSTM && shape.hidden % 2 == 0 && state_type == FLOAT16 && shape.inputs == 2;
}

inline bool use_dot_products() {
  static int has = -1;  // to ask the CPU takes microseconds
  int known = __atomic_load_n(&has, __ATOMIC_RELAXED);
  if (known < 0) __atomic_store_n(&has, known = has_dot_products(), __ATOMIC_RELAXED);
  return known && learned_optim_dot_products;
}

// Multiples of 2^-15 in [-1, 1), 1 added, so that their 16 bits have no sign.
INLINE vs lift(vs x) { return x ^ fill((short)0x8000); }

// W multiples of 2^-15 without a sign, less `lifted`, as float32: the first W of what `join` joined, or the
// others. The exponent is that of 256, to which 16 bits then add such multiples.
INLINE vf to_float(vs x, bool upper, float lifted = 0.0f) {
  const vs exponent = fill(0x4380);
  return (vf)(upper ? beside_upper(x, exponent) : beside(x, exponent)) - (256.0f + lifted);
}

// The numbers of two units beside each other, coordinate by coordinate.
INLINE void put_pairs(vs even, vs odd, vs* pairs) {
  pairs[0] = beside(even, odd);
  pairs[1] = beside_upper(even, odd);
}

// Multiples of 1 / scale.
INLINE vs to_short(vf low, vf high, float scale) { return join(to_sums(low * scale), to_sums(high * scale)); }

// The features of a row of TV gradients, see `log_sign`, two rows of TV. The logarithm, of base 2: the
// bits of a float, as an integer, are one that is linear between powers of two; what that lacks is a
// polynomial of the fraction. Off by 2e-5, over p. What gradients that are not finite give, nobody uses.
INLINE void short_features(const LogSign& f, const float* grad, float* x) {
  const float ln_2 = 0.693147181f;
#pragma GCC unroll 2
  for (int v = 0; v < V; v++) {
    const vf g = load(grad + v * W);
    const vi u = bits(vmax(set1(1.17549435e-38f), from_bits(bits(g) & 0x7fffffff)));
    const vf m = from_bits((u & 0x7fffff) | 0x3f800000);
    vf q = m * 0.0448736103f - 0.416563687f;
    q = q * m + 1.63114877f;
    q = q * m - 3.55079293f;
    q = q * m + 4.09171081f;
    q = q * m - 128.800364f;  // 127 of it the bias of the exponent
    const vf ratio = (__builtin_convertvector(u, vf) * 1.1920929e-07f + q) * (ln_2 * f.inverse_p);
    const vf sign = from_bits((bits(g) & (int32_t)0x80000000) | bits(set1(1.0f)));
    store(x + v * W, vmax(set1(-1.0f), ratio));
    store(x + TV + v * W, ratio < -1.0f ? g * f.exp_p : sign);
  }
}

INLINE vf load_half(const uint16_t* p) { return from_float16(*(const vh_unaligned*)p); }

template <int H>
INLINE void read_pairs(int hidden, const uint16_t* h, vs* pairs) {
  for (int j = 0; j < (H ? H : hidden); j += 2) {
    vs unit[2];
#pragma GCC unroll 2
    for (int u = 0; u < 2; u++) {
      const uint16_t* at = h + (j + u) * TV;
      unit[u] = to_short(load_half(at), load_half(at + W), (float)ONE);
    }
    put_pairs(unit[0], unit[1], pairs + j);
  }
}

template <bool DOT>
INLINE void add_pairs(const int32_t* w, const vs* pairs, int count, vs (&sums)[SUM_ROWS][V]) {
#pragma GCC unroll 2
  for (int k = 0; k < count; k++) {
#pragma GCC unroll 8
    for (int r = 0; r < SUM_ROWS; r++) add_products<DOT>(sums[r], pairs + V * k, w + k * SHORT_ROWS + r);
  }
}

// What sums begin with: of the features in the first layer, else the bias alone.
template <int INPUTS>
INLINE void begin_sums(const float* w, const float* x, vs (&sums)[SUM_ROWS][V]) {
#pragma GCC unroll 8
  for (int r = 0; r < SUM_ROWS; r++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      vf sum = set1(w[INPUTS * SHORT_ROWS + r]);
#pragma GCC unroll 8
      for (int k = 0; k < INPUTS; k++) sum += load(x + k * TV + v * W) * w[k * SHORT_ROWS + r];
      sums[r][v] = to_sums(sum);
    }
}

// What the activations see of all units, four rows of TV each. `x`: rows of TV floats, in the first
// layer alone, where INPUTS is not 0.
template <int H, int INPUTS, bool DOT>
APART void short_sums(int hidden_, const ShortLayer& w, const float* x, const vs* pairs, vs* seen,
                      Ahead& ahead, int lines) {
  const int hidden = H ? H : hidden_, count = INPUTS ? hidden / 2 : hidden;
#pragma GCC unroll 1
  for (int row = 0; row < 4 * hidden; row += SUM_ROWS) {
    const int within = row % SHORT_ROWS, group = row - within;
    ahead.fetch(lines);
    vs sums[SUM_ROWS][V];
    if constexpr (INPUTS > 0)
      begin_sums<INPUTS>(w.begin + group * (INPUTS + 1) + within, x, sums);
    else
#pragma GCC unroll 8
      for (int r = 0; r < SUM_ROWS; r++)
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) sums[r][v] = fill_sums(w.bias[row + r]);
    add_pairs<DOT>(w.pairs + group * count + within, pairs, count, sums);
#pragma GCC unroll 8
    for (int r = 0; r < SUM_ROWS; r++) {
      const int32_t bits = w.shifts[row + r];
      seen[row + r] = join(shift_sums(sums[r][0], bits), shift_sums(sums[r][1], bits));
    }
  }
}

// What the gates make of what they see, in its place: what is added to c (lifted), the share of c that
// is kept, the share of tanh(c) that goes out.
INLINE void short_gates(int hidden, const Activations& at, vs* seen) {
#pragma GCC unroll 1
  for (int j = 0; j < hidden; j += 2) {
    vs* y = seen + 4 * j;
    vs added[2], kept[2], open[2];
#pragma GCC unroll 2
    for (int u = 0; u < 2; u++) {
      added[u] = times(at.sigmoid(y[4 * u]), at.tanh(y[4 * u + 3]));
      kept[u] = at.sigmoid(y[4 * u + 1]);
      open[u] = at.sigmoid(y[4 * u + 2]);
    }
#pragma GCC unroll 2
    for (int u = 0; u < 2; u++) {
      y[4 * u] = lift(added[u]);
      y[4 * u + 1] = kept[u];
      y[4 * u + 2] = open[u];
    }
  }
}

// Moves c, rows of TV float16; in place of the fourth row that the gates saw, what tanh is to see.
INLINE void short_memories(int hidden, vs* seen, uint16_t* c) {
#pragma GCC unroll 1
  for (int j = 0; j < hidden; j += 2) {
#pragma GCC unroll 2
    for (int u = 0; u < 2; u++) {
      vs* y = seen + 4 * (j + u);
      uint16_t* row = c + (j + u) * TV;
      vf moved[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++)
        moved[v] = load_half(row + v * W) * to_float(y[1], v) + to_float(y[0], v, 1.0f);
      store_halves(row, moved);
      y[3] = to_short(moved[0], moved[1], (float)ARGUMENT);
    }
  }
}

// h from them, rows of TV float16, and as pairs.
INLINE void short_outputs(int hidden, const Activations& at, const vs* seen, uint16_t* h, vs* pairs) {
#pragma GCC unroll 1
  for (int j = 0; j < hidden; j += 2) {
    vs out[2];
#pragma GCC unroll 2
    for (int u = 0; u < 2; u++) {
      const vs* y = seen + 4 * (j + u);
      out[u] = times(y[2], at.tanh(y[3]));
      const vs lifted = lift(out[u]);
      store_halves(h + (j + u) * TV, {to_float(lifted, 0, 1.0f), to_float(lifted, 1, 1.0f)});
    }
    put_pairs(out[0], out[1], pairs + j);
  }
}

template <int H, int INPUTS>
INLINE void short_sums(bool dot, int hidden, const ShortLayer& w, const float* x, const vs* pairs, vs* seen,
                       Ahead& ahead, int lines) {
  if (dot)
    short_sums<H, INPUTS, true>(hidden, w, x, pairs, seen, ahead, lines);
  else
    short_sums<H, INPUTS, false>(hidden, w, x, pairs, seen, ahead, lines);
}

// Moves h and c of all units. Each is a chain of a hundred instructions that wait for each other: in
// three rounds, so that the CPU sees several units' at a time.
template <int H>
APART void short_units(int hidden_, vs* seen, uint16_t* h, vs* pairs) {
  const int hidden = H ? H : hidden_;
  const Activations at;
  short_gates(hidden, at, seen);
  short_memories(hidden, seen, h + hidden * TV);
  short_outputs(hidden, at, seen, h, pairs);
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

// Moves `state`, rows of TV float16; the output, before any scale. Numbers that are finite stay so: c
// moves by at most 1 a step, and float16 rounds 65505 down. With each group of sums `lines` of `ahead`
// are fetched.
template <int H, int INPUTS>
INLINE void short_step(const Shape& shape, const ShortCells& cells, const ShortScratch& scratch,
                       const float* x, uint16_t* state, vf (&out)[V], bool dot, Ahead& ahead, int lines) {
  const int hidden = H ? H : shape.hidden;
  for (int layer = 0; layer < shape.layers; layer++) {
    uint16_t* h = state + 2 * layer * hidden * TV;
    read_pairs<H>(hidden, h, scratch.own);
    const ShortLayer& w = cells.layer[layer];
    if (layer == 0)
      short_sums<H, INPUTS>(dot, hidden, w, x, scratch.own, scratch.seen, ahead, lines);
    else
      short_sums<H, 0>(dot, hidden, w, nullptr, scratch.below, scratch.seen, ahead, lines);
    short_units<H>(hidden, scratch.seen, h, scratch.below);
  }
  vs sums[V] = {};
  for (int k = 0; k < hidden / 2; k++) add_products<false>(sums, scratch.below + V * k, cells.head + k);
#pragma GCC unroll 2
  for (int v = 0; v < V; v++) out[v] = from_sums(sums[v]) * cells.head_scale + cells.head_bias;
}

}  // namespace
#endif
