// The coordinatewise LSTM on one tile of TV coordinates: packed weights and the forward step.
//
// Rows of TV floats; gates are stored unit after unit as (i, f, o, g), while the caller's weights
// have all i rows first. Sizes are run-time numbers unless the template knows the hidden size H.
#pragma once
#include <stdlib.h>

#include "activations.h"

namespace {

struct Shape {
  int layers, hidden, inputs;
  LogSign features;  // used when inputs == 2; one input is the raw gradient

  int layer_inputs(int layer) const { return layer == 0 ? inputs : hidden; }
  // Floats of one layer in the caller's flat weights: w_ih (4H, F), w_hh (4H, H), b (4H).
  long layer_weights(int layer) const { return 4L * hidden * (layer_inputs(layer) + hidden + 1); }
  long weights() const {
    long n = hidden + 1;
    for (int layer = 0; layer < layers; layer++) n += layer_weights(layer);
    return n;
  }
  long state_rows() const { return 2L * layers * hidden; }
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

// Sigmoid gates go through 2^y, so their weights carry the factor -log2(e).
inline float gate_factor(int gate) { return gate == 3 ? 1.0f : -LOG2_E; }

// All weights that input k (of x, then of h) sends to gate row `row` of the caller's layout.
inline float weight_at(const float* w, int hidden, int inputs, int row, int k) {
  if (k < inputs) return w[(long)row * inputs + k];
  return w[4L * hidden * inputs + (long)row * hidden + (k - inputs)];
}

inline void pack_forward(const float* w, int hidden, int inputs, float* out) {
  const float* bias = w + 4L * hidden * (inputs + hidden);
  for (int j0 = 0; j0 < hidden; j0 += UNITS) {
    int units = group_size(hidden - j0, UNITS);
    for (int k = -1; k < inputs + hidden; k++)
      for (int j = j0; j < j0 + units; j++)
        for (int q = 0; q < 4; q++) {
          int row = q * hidden + j;
          float value = k < 0 ? bias[row] : weight_at(w, hidden, inputs, row, k);
          *out++ = gate_factor(q) * value;
        }
  }
}

// `first`: the first input whose gradient is wanted.
inline void pack_backward(const float* w, int hidden, int inputs, int first, float* out) {
  for (int k0 = first; k0 < inputs + hidden;) {
    int left = inputs + hidden - k0;
    int rows = left >= BACK_ROWS ? BACK_ROWS : left >= 4 ? 4 : 1;
    for (int j = 0; j < hidden; j++)
      for (int q = 0; q < 4; q++)
        for (int k = k0; k < k0 + rows; k++)
          *out++ = weight_at(w, hidden, inputs, q * hidden + j, k);
    k0 += rows;
  }
}

// How far the way back goes: not at all, to the state, or through the features to the gradient.
enum Backward { NO_BACKWARD, TO_STATE, TO_GRADIENT };

// Packs into `memory`, which holds 2 * shape.weights() floats.
inline Packed pack(const Shape& shape, const float* w, float* memory, Backward backward) {
  Packed packed;
  for (int layer = 0; layer < shape.layers; layer++) {
    int inputs = shape.layer_inputs(layer);
    packed.layer[layer] = {memory, memory + shape.layer_weights(layer)};
    pack_forward(w, shape.hidden, inputs, packed.layer[layer].forward);
    const int first = layer == 0 && backward == TO_STATE ? inputs : 0;
    if (backward) pack_backward(w, shape.hidden, inputs, first, packed.layer[layer].backward);
    memory += 2 * shape.layer_weights(layer);
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

// Where the forward step of one layer leaves its results, rows of TV floats.
struct Kept {
  float* h;           // H rows
  float* c;           // H rows; may be c_before
  float* gates;       // 4 H rows or null
  float* tanh_c;      // H rows or null
};

// One vector of one unit: gates -> c, h. Two reciprocals, one for c and one for h.
INLINE void unit_step(vf yi, vf yf, vf yo, vf g_in, vf c, float* c_out, float* h_out) {
  vf i = exp2_clamped(yi) + 1.0f, f = exp2_clamped(yf) + 1.0f, o = exp2_clamped(yo) + 1.0f;
  Fraction g = tanh_fraction(g_in);
  vf id = i * g.d;
  c = (c * id + f * g.n) * reciprocal(f * id);
  store(c_out, c);
  Fraction t = tanh_fraction(c);
  store(h_out, t.n * reciprocal(o * t.d));
}

// The same, keeping what the way back needs.
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

template <int N_UNITS, bool KEEP>
INLINE const float* units_forward(const float* w, int j0, int hidden, int inputs, const float* x,
                                  const float* h, const float* c, const Kept& out) {
  constexpr int R = 4 * N_UNITS;
  vf sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sums[r][v] = set1(w[r]);
  multiply<R>(w + R, x, inputs, sums);
  multiply<R>(w + R * (1 + inputs), h, hidden, sums);
#pragma GCC unroll 2
  for (int u = 0; u < N_UNITS; u++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      long at = (j0 + u) * TV + v * W;
      vf before = load(c + at);
      vf i = sums[4 * u][v], f = sums[4 * u + 1][v], o = sums[4 * u + 2][v];
      vf g = sums[4 * u + 3][v];
      if constexpr (KEEP)
        unit_step_kept(i, f, o, g, before, out, at, 4L * (j0 + u) * TV + v * W);
      else
        unit_step(i, f, o, g, before, out.c + at, out.h + at);
    }
  return w + R * (1 + inputs + hidden);
}

// One layer of one step. `x`: input rows; `h`, `c`: the layer's state before, H rows each.
template <int H, bool KEEP>
INLINE void layer_forward(int hidden_, int inputs, const float* packed, const float* x,
                          const float* h, const float* c, const Kept& out) {
  const int hidden = H ? H : hidden_;
  int j = 0;
  for (; j + UNITS <= hidden; j += UNITS)
    packed = units_forward<UNITS, KEEP>(packed, j, hidden, inputs, x, h, c, out);
  for (; j < hidden; j++)
    packed = units_forward<1, KEEP>(packed, j, hidden, inputs, x, h, c, out);
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

// The gradient by the row of TV gradients from that by their features, `dx`.
INLINE void features_backward(const Shape& shape, const float* grad, const float* dx, float* out) {
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) {
    vf d = load(dx + v * W);
    if (shape.inputs == 2)
      d = log_sign_backward(load(grad + v * W), shape.features, d, load(dx + TV + v * W));
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
