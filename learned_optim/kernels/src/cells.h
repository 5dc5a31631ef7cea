// The cells of the rule `l2l`, one unit at a time: what its sums are made of, and how they move it.
//
// A cell is a struct of
//   GATES, EXTRA   blocks of H rows in the caller's w_ih, w_hh and b, and in the vectors behind them;
//   VECTORS        of the state, h first;
//   ROWS           sums of a unit: a bias plus weights times the inputs x, then the h before;
//   OWN            further numbers of a unit, which `step` sees;
//   weight         of a sum, as the sums go through 2^y where a sigmoid follows;
//   step           one vector of coordinates.
// Equations and order of the gates: `learned_optim/cells.py`.
#pragma once
#include "activations.h"

namespace {

enum CellKind { LSTM, RNN, GRU, PEEPHOLE, COUPLED };

// One layer's weights as the caller has them: w_ih (G H, F), w_hh (G H, H), b (G H), extra (E H).
struct LayerWeights {
  const float* w;
  int hidden, inputs, gates;

  long rows() const { return (long)gates * hidden; }
  // Of input k: -1 is the bias, then come those of x, then those of h.
  float at(int gate, int unit, int k) const {
    const long row = (long)gate * hidden + unit;
    if (k < 0) return w[rows() * (inputs + hidden) + row];
    if (k < inputs) return w[row * inputs + k];
    return w[rows() * inputs + row * hidden + (k - inputs)];
  }
  float extra(int block, int unit) const {
    return w[rows() * (inputs + hidden + 1) + (long)block * hidden + unit];
  }
};

INLINE vf sigmoid(vf y) { return reciprocal(exp2_clamped(y) + 1.0f); }  // y is -log2(e) times its x

// Gates i, f, o, g.
struct Lstm {
  static constexpr int GATES = 4, EXTRA = 0, VECTORS = 2, ROWS = 4, OWN = 0;

  static float weight(const LayerWeights& w, int row, int unit, int k) {
    return (row == 3 ? 1.0f : -LOG2_E) * w.at(row, unit, k);
  }

  // Two reciprocals, one for c and one for h. Many units in three rounds, as each is a chain of
  // instructions that wait for each other, and the CPU then sees several at a time. `y`: four rows of TV
  // of each unit, what its gates see; written over.
  INLINE static void steps(int units, float* y, const float* c, float* c_out, float* h_out) {
#pragma GCC unroll 1
    for (int u = 0; u < units; u++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) {
        float* at = y + 4 * u * TV + v * W;
        const vf i = exp2_clamped(load(at)) + 1.0f, f = exp2_clamped(load(at + TV)) + 1.0f;
        const vf o = exp2_clamped(load(at + 2 * TV)) + 1.0f;
        const Fraction g = tanh_fraction(load(at + 3 * TV));
        const vf id = i * g.d;
        store(at, id);
        store(at + TV, f * g.n);
        store(at + 2 * TV, o);
        store(at + 3 * TV, f * id);
      }
#pragma GCC unroll 1
    for (int u = 0; u < units; u++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) {
        const float* at = y + 4 * u * TV + v * W;
        const long row = u * TV + v * W;
        store(c_out + row, (load(c + row) * load(at) + load(at + TV)) * reciprocal(load(at + 3 * TV)));
      }
#pragma GCC unroll 1
    for (int u = 0; u < units; u++)
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) {
        const long row = u * TV + v * W;
        const Fraction t = tanh_fraction(load(c_out + row));
        store(h_out + row, t.n * reciprocal(load(y + (4 * u + 2) * TV + v * W) * t.d));
      }
  }
};

struct Rnn {
  static constexpr int GATES = 1, EXTRA = 0, VECTORS = 1, ROWS = 1, OWN = 0;

  static float weight(const LayerWeights& w, int row, int unit, int k) { return w.at(row, unit, k); }

  INLINE static void step(const vf* y, const float*, vf, vf, float*, float* h_out) {
    store(h_out, tanh(y[0]));
  }
};

// Gates r, z, n, of which n has two sums: r multiplies what comes from h alone.
struct Gru {
  static constexpr int GATES = 3, EXTRA = 1, VECTORS = 1, ROWS = 4, OWN = 0;

  static float weight(const LayerWeights& w, int row, int unit, int k) {
    if (row < 2) return -LOG2_E * w.at(row, unit, k);
    const bool of_x = k < w.inputs;
    if (row == 2) return of_x ? w.at(2, unit, k) : 0.0f;
    if (k < 0) return w.extra(0, unit);
    return of_x ? 0.0f : w.at(2, unit, k);
  }

  INLINE static void step(const vf* y, const float*, vf h, vf, float*, float* h_out) {
    vf n = tanh(y[2] + sigmoid(y[0]) * y[3]);
    store(h_out, n + sigmoid(y[1]) * (h - n));
  }
};

// Gates i, f, o, g, and what the first three see of c.
struct Peephole {
  static constexpr int GATES = 4, EXTRA = 3, VECTORS = 2, ROWS = 4, OWN = 3;

  static float weight(const LayerWeights& w, int row, int unit, int k) {
    return Lstm::weight(w, row, unit, k);
  }

  INLINE static void step(const vf* y, const float* peep, vf, vf c, float* c_out, float* h_out) {
    vf i = sigmoid(y[0] - c * (LOG2_E * peep[0])), f = sigmoid(y[1] - c * (LOG2_E * peep[1]));
    c = f * c + i * tanh(y[3]);
    store(c_out, c);
    store(h_out, sigmoid(y[2] - c * (LOG2_E * peep[2])) * tanh(c));
  }
};

// Gates f, o, g; the input gate is 1 - f.
struct Coupled {
  static constexpr int GATES = 3, EXTRA = 0, VECTORS = 2, ROWS = 3, OWN = 0;

  static float weight(const LayerWeights& w, int row, int unit, int k) {
    return (row == 2 ? 1.0f : -LOG2_E) * w.at(row, unit, k);
  }

  INLINE static void step(const vf* y, const float*, vf, vf c, float* c_out, float* h_out) {
    vf g = tanh(y[2]);
    c = g + sigmoid(y[0]) * (c - g);
    store(c_out, c);
    store(h_out, sigmoid(y[1]) * tanh(c));
  }
};

// Calls `f` with a value of the cell's struct.
template <class F>
inline auto with_cell(int kind, F f) {
  switch (kind) {
    case RNN: return f(Rnn());
    case GRU: return f(Gru());
    case PEEPHOLE: return f(Peephole());
    case COUPLED: return f(Coupled());
    default: return f(Lstm());
  }
}

}  // namespace
