// Stacked cells on one tile of TV coordinates: packed weights and the forward step.
//
// Rows of TV floats; sums are stored unit after unit, while the caller's weights have all rows of the
// first gate first. Sizes are run-time numbers unless the template knows the hidden size H.
#pragma once
#include <stdlib.h>

#include "cells.h"

namespace {

struct Shape {
  int cell, layers, hidden, inputs;
  LogSign features;  // used when inputs == 2; one input is the raw gradient

  int layer_inputs(int layer) const { return layer == 0 ? inputs : hidden; }
  // Floats of one layer in the caller's flat weights, see `LayerWeights`.
  long layer_weights(int layer) const {
    const long columns = layer_inputs(layer) + hidden + 1;
    return hidden * with_cell(cell, [&](auto c) { return c.GATES * columns + c.EXTRA; });
  }
  // As the forward step reads them.
  long packed_weights(int layer) const {
    const long columns = layer_inputs(layer) + hidden + 1;
    return hidden * with_cell(cell, [&](auto c) { return c.ROWS * columns + c.OWN; });
  }
  long weights() const {
    long n = hidden + 1;
    for (int layer = 0; layer < layers; layer++) n += layer_weights(layer);
    return n;
  }
  // What `pack` fills.
  long packed() const {
    long n = 0;
    for (int layer = 0; layer < layers; layer++) n += packed_weights(layer) + layer_weights(layer);
    return n;
  }
  int vectors() const {
    return with_cell(cell, [](auto c) { return c.VECTORS; });
  }
  long state_rows() const { return (long)vectors() * layers * hidden; }
};

constexpr int MAX_LAYERS = 8;

// One layer's weights in the order in which the loops read them.
struct PackedLayer {
  float* forward;   // per group of units: biases, then a row of 4 * units weights per input
  float* backward;  // per group of inputs: a row of that many weights per gate row
};

struct Packed {
  PackedLayer layer[MAX_LAYERS];
  const float* head;
};

constexpr int BACK_ROWS = 4 * UNITS;  // inputs handled together on the way back

INLINE int group_size(int left, int largest) { return left < largest ? left : largest; }

// Units whose sums share the registers.
template <class Cell>
constexpr int GROUP = 4 * UNITS / Cell::ROWS;

template <class Cell>
inline void pack_forward(const float* weights, int hidden, int inputs, float* out) {
  const LayerWeights w = {weights, hidden, inputs, Cell::GATES};
  for (int j0 = 0; j0 < hidden;) {
    const int units = hidden - j0 >= GROUP<Cell> ? GROUP<Cell> : 1;
    for (int k = -1; k < inputs + hidden; k++)
      for (int j = j0; j < j0 + units; j++)
        for (int row = 0; row < Cell::ROWS; row++) *out++ = Cell::weight(w, row, j, k);
    for (int j = j0; j < j0 + units; j++)
      for (int i = 0; i < Cell::OWN; i++) *out++ = w.extra(i, j);
    j0 += units;
  }
}

// `first`: the first input whose gradient is wanted.
inline void pack_backward(const float* weights, int hidden, int inputs, int first, float* out) {
  const LayerWeights w = {weights, hidden, inputs, Lstm::GATES};
  for (int k0 = first; k0 < inputs + hidden;) {
    int left = inputs + hidden - k0;
    int rows = left >= BACK_ROWS ? BACK_ROWS : left >= 4 ? 4 : 1;
    for (int j = 0; j < hidden; j++)
      for (int q = 0; q < 4; q++)
        for (int k = k0; k < k0 + rows; k++)
          *out++ = w.at(q, j, k);
    k0 += rows;
  }
}

// How far the way back goes: not at all, to the state, or through the features to the gradient.
enum Backward { NO_BACKWARD, TO_STATE, TO_GRADIENT };

// Packs into `memory`, which holds shape.packed() floats. There is a way back for LSTMs alone.
inline Packed pack(const Shape& shape, const float* w, float* memory, Backward backward) {
  Packed packed;
  for (int layer = 0; layer < shape.layers; layer++) {
    const int hidden = shape.hidden, inputs = shape.layer_inputs(layer);
    packed.layer[layer] = {memory, memory + shape.packed_weights(layer)};
    with_cell(shape.cell, [&](auto cell) {
      pack_forward<decltype(cell)>(w, hidden, inputs, packed.layer[layer].forward);
    });
    const int first = layer == 0 && backward == TO_STATE ? inputs : 0;
    if (backward) pack_backward(w, hidden, inputs, first, packed.layer[layer].backward);
    memory += shape.packed_weights(layer) + shape.layer_weights(layer);
    w += shape.layer_weights(layer);
  }
  packed.head = w;
  return packed;
}

// sums[r][v] += sum_k w[k][r] * in[k][v]
template <int R>
INLINE void multiply(const float* w, const float* in, int count, vf (&sums)[R][V]) {
#pragma GCC unroll 4
  for (int k = 0; k < count; k++) {
    vf x[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) x[v] = load(in + k * TV + v * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) sums[r][v] += x[v] * w[k * R + r];
  }
}

// The sums of R rows: bias, input and state before. The weights behind theirs.
template <int R>
INLINE const float* sum_up(const float* w, int hidden, int inputs, const float* x, const float* h,
                           vf (&sums)[R][V]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[r][v] = set1(w[r]);
  multiply<R>(w + R, x, inputs, sums);
  multiply<R>(w + R * (1 + inputs), h, hidden, sums);
  return w + R * (1 + inputs + hidden);
}

// Where the forward step of one layer leaves its results, rows of TV floats.
struct Kept {
  float* h;           // H rows
  float* c;           // H rows; may be c_before
  float* gates;       // 4 H rows or null
  float* tanh_c;      // H rows or null
};

// A unit of an `Lstm`, keeping what the way back needs.
INLINE void unit_step_kept(vf yi, vf yf, vf yo, vf g_in, vf c, const Kept& out, long at,
                           long gates_at) {
  vf i = reciprocal(exp2_clamped(yi) + 1.0f), f = reciprocal(exp2_clamped(yf) + 1.0f);
  vf o = reciprocal(exp2_clamped(yo) + 1.0f), g = tanh(g_in);
  c = f * c + i * g;
  vf t = tanh(c);
  store(out.c + at, c);
  store(out.tanh_c + at, t);
  store(out.h + at, o * t);
  store(out.gates + gates_at, i);
  store(out.gates + gates_at + TV, f);
  store(out.gates + gates_at + 2 * TV, o);
  store(out.gates + gates_at + 3 * TV, g);
}

template <class Cell, int N_UNITS, bool KEEP>
INLINE const float* units_forward(const float* w, int j0, int hidden, int inputs, const float* x,
                                  const float* h, const float* c, const Kept& out) {
  constexpr int R = Cell::ROWS * N_UNITS;
  vf sums[R][V];
  w = sum_up<R>(w, hidden, inputs, x, h, sums);
#pragma GCC unroll 8
  for (int u = 0; u < N_UNITS; u++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      const long at = (j0 + u) * TV + v * W;
      vf y[Cell::ROWS], before = {};
#pragma GCC unroll 8
      for (int row = 0; row < Cell::ROWS; row++) y[row] = sums[Cell::ROWS * u + row][v];
      if constexpr (Cell::VECTORS == 2) before = load(c + at);
      if constexpr (KEEP)
        unit_step_kept(y[0], y[1], y[2], y[3], before, out, at, 4L * (j0 + u) * TV + v * W);
      else
        Cell::step(y, w + Cell::OWN * u, load(h + at), before, out.c + at, out.h + at);
    }
  return w + Cell::OWN * N_UNITS;
}

// The sums of a group of units alone, four rows of TV each.
template <int N_UNITS>
INLINE const float* units_sums(const float* w, int hidden, int inputs, const float* x, const float* h,
                               float* y) {
  constexpr int R = 4 * N_UNITS;
  vf sums[R][V];
  w = sum_up<R>(w, hidden, inputs, x, h, sums);
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store(y + r * TV + v * W, sums[r][v]);
  return w;
}

// Cells that move many units at once.
template <class Cell>
constexpr bool IN_ROUNDS = false;
template <>
constexpr bool IN_ROUNDS<Lstm> = true;
constexpr int TOGETHER = 8;  // so many

struct Nothing {
  INLINE void operator()() const {}
};

// As `layer_forward`.
template <class Cell, class Between>
INLINE void rounds_forward(int hidden, int inputs, const float* packed, const float* x, const float* h,
                           const float* c, const Kept& out, Between between) {
  float y[4 * TOGETHER * TV];
  for (int first = 0; first < hidden; first += TOGETHER) {
    const int units = group_size(hidden - first, TOGETHER);
    int j = 0;
    for (; j + UNITS <= units; j += UNITS) {
      between();
      packed = units_sums<UNITS>(packed, hidden, inputs, x, h, y + 4 * j * TV);
    }
    for (; j < units; j++) packed = units_sums<1>(packed, hidden, inputs, x, h, y + 4 * j * TV);
    const long row = first * (long)TV;
    Cell::steps(units, y, c + row, out.c + row, out.h + row);
  }
}

// One layer of one step. `x`: input rows; `h`, `c`: the layer's state before, H rows each. `between`
// is called before each group of units.
template <class Cell, int H, bool KEEP, class Between = Nothing>
INLINE void layer_forward(int hidden_, int inputs, const float* packed, const float* x,
                          const float* h, const float* c, const Kept& out, Between between = {}) {
  const int hidden = H ? H : hidden_;
  if constexpr (IN_ROUNDS<Cell> && !KEEP) {
    rounds_forward<Cell>(hidden, inputs, packed, x, h, c, out, between);
  } else {
    int j = 0;
    for (; j + GROUP<Cell> <= hidden; j += GROUP<Cell>) {
      between();
      packed = units_forward<Cell, GROUP<Cell>, KEEP>(packed, j, hidden, inputs, x, h, c, out);
    }
    for (; j < hidden; j++)
      packed = units_forward<Cell, 1, KEEP>(packed, j, hidden, inputs, x, h, c, out);
  }
}

INLINE void head_forward(const float* head, int hidden, const float* h, vf (&out)[V]) {
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) {
    out[v] = set1(head[hidden]);
    for (int k = 0; k < hidden; k++) out[v] += load(h + k * TV + v * W) * head[k];
  }
}

// Features of one row of TV gradients: `inputs` rows.
INLINE void features(const Shape& shape, const float* grad, float* x) {
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) {
    vf g = load(grad + v * W);
    if (shape.inputs == 1) {
      store(x + v * W, g);
      continue;
    }
    vf magnitude, direction;
    log_sign(g, shape.features, &magnitude, &direction);
    store(x + v * W, magnitude);
    store(x + TV + v * W, direction);
  }
}

// The gradient by the row of TV gradients from that by their features, `dx`; of smoothed features
// where there are `widths`.
INLINE void features_backward(const Shape& shape, const float* grad, const float* widths,
                              const float* dx, float* out) {
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) {
    vf d = load(dx + v * W);
    if (shape.inputs == 2) {
      vf g = load(grad + v * W), dd = load(dx + TV + v * W);
      d = widths ? log_sign_smoothed_backward(g, load(widths + v * W), shape.features, d, dd)
                 : log_sign_backward(g, shape.features, d, dd);
    }
    store(out + v * W, d);
  }
}

// Rows of the caller's matrix (row length `stride`) to and from rows of TV; the rest is zero.
inline void gather_rows(const float* from, long stride, int rows, int valid, float* to) {
  for (int r = 0; r < rows; r++, from += stride, to += TV) {
    if (valid == TV) {
      memcpy(to, from, sizeof(float) * TV);
      continue;
    }
    memset(to, 0, sizeof(float) * TV);
    memcpy(to, from, sizeof(float) * valid);
  }
}

inline void scatter_rows(const float* from, long stride, int rows, int valid, float* to) {
  for (int r = 0; r < rows; r++, from += TV, to += stride)
    memcpy(to, from, sizeof(float) * (valid == TV ? TV : valid));
}

}  // namespace
