// The coordinates of the rule `default` (learned_optim/rules/default.py), one tile of TV of them:
// moments, direction of Adam, the LSTM that bends it, step. Names and constants are that file's.
#pragma once
#include "layers.h"
#include "parallel.h"
#include "table.h"

namespace {

constexpr int DEFAULT_INPUTS = 4;  // of a coordinate's own
constexpr int DEFAULT_SAYS = 2;    // and what the controller says, the same within a tensor
constexpr int DEFAULT_BENDS = 3;
constexpr float TURN = 0.9f, ADD = 0.5f, FREE = 0.2f, CLIP = 4.0f, DEAD = 1e-12f;
constexpr float SEEN_DEAD = 30.0f;
constexpr float LARGEST_SQUARABLE = 1e14f;

// What the controller sends to the coordinates of one tensor: rows of the caller's `signals`.
struct Signals {
  float beta1, beta2, g_scale, m_scale, v_scale, theta_scale, length, blend, gain;
  float say[DEFAULT_SAYS];
  float clip;
  float share, due;  // of `deferral`
};
constexpr int SIGNALS = sizeof(Signals) / sizeof(float);

// One set of weights of the coordinates' LSTM, in the order in which the loops read them.
struct DefaultWeights {
  const float* forward;  // as `pack_forward` has them, without what the controller says
  const float* says;     // (DEFAULT_SAYS, 4 H): weights of that, in the order of the biases
  const float* head;     // biases, then a row of DEFAULT_BENDS for each unit
};

inline long default_forward_weights(int hidden) {
  return 4L * hidden * (1 + DEFAULT_INPUTS + hidden);
}

inline long default_head_weights(int hidden) { return (1 + hidden) * (long)DEFAULT_BENDS; }

// Floats of one set, the caller's and packed alike.
inline long default_weights(int hidden) {
  if (!hidden) return 0;
  const long says = 4L * DEFAULT_SAYS * hidden;
  return default_forward_weights(hidden) + says + default_head_weights(hidden);
}

// From the caller's w_ih (4H, 6), w_hh (4H, H), b (4H), head (3, H), its bias (3).
inline DefaultWeights pack_default(const float* w, int hidden, float* memory) {
  constexpr int inputs = DEFAULT_INPUTS + DEFAULT_SAYS;
  const LayerWeights layer = {w, hidden, inputs, Lstm::GATES};
  const float* head = w + 4L * hidden * (inputs + hidden + 1);
  float* forward = memory;
  float* says = forward + default_forward_weights(hidden);
  float* bends = says + 4L * DEFAULT_SAYS * hidden;
  long position = 0;  // of a gate in the order of the biases
  for (int j0 = 0; j0 < hidden; j0 += UNITS) {
    const int units = group_size(hidden - j0, UNITS);
    for (int k = -1; k < inputs + hidden; k++)
      for (int i = 0; i < 4 * units; i++) {
        const float value = Lstm::weight(layer, i % 4, j0 + i / 4, k);
        if (k < DEFAULT_INPUTS || k >= inputs)
          *memory++ = value;
        else
          says[(k - DEFAULT_INPUTS) * 4L * hidden + position + i] = value;
      }
    position += 4 * units;
  }
  for (int r = 0; r < DEFAULT_BENDS; r++) {
    float* column = bends + r;
    *column = head[(long)DEFAULT_BENDS * hidden + r];
    for (int k = 0; k < hidden; k++) column[(1 + k) * DEFAULT_BENDS] = head[(long)r * hidden + k];
  }
  return {forward, says, bends};
}

// The forward weights of one tensor, to which what the controller says is a part of the biases.
inline void add_says(const DefaultWeights& weights, int hidden, const float* say, float* forward) {
  memcpy(forward, weights.forward, sizeof(float) * default_forward_weights(hidden));
  long position = 0;
  for (int j0 = 0; j0 < hidden; j0 += UNITS) {
    const int rows = 4 * group_size(hidden - j0, UNITS);
    for (int i = 0; i < rows; i++, position++)
      forward[i] += weights.says[position] * say[0] + weights.says[4L * hidden + position] * say[1];
    forward += (1 + DEFAULT_INPUTS + hidden) * (long)rows;
  }
}

// Rows of one tile, TV floats each.
struct DefaultTile {
  float *grad, *param, *m, *v;
  float *cell, *h;  // 2 H rows before -> after, H rows of scratch
  float *x;         // DEFAULT_INPUTS rows
  float *step, *owed;
};

inline DefaultTile lay_out_default_tile(int hidden, Arena& arena) {
  DefaultTile tile;
  float** rows[] = {&tile.grad, &tile.param, &tile.m, &tile.v, &tile.step, &tile.owed};
  for (float** row : rows) *row = arena.take<float>(TV);
  tile.cell = arena.take<float>(2L * hidden * TV);
  tile.h = arena.take<float>((long)hidden * TV);
  tile.x = arena.take<float>((long)DEFAULT_INPUTS * TV);
  return tile;
}

INLINE vf square_safe(vf x) { return clamp(x, -LARGEST_SQUARABLE, LARGEST_SQUARABLE); }

// What a coordinate's gradient and moments come to.
struct Seen {
  vf g, relative, per_root, direction;  // relative: the second moment, over that of the tensor
};

// The moments before -> after.
INLINE Seen see_gradient(const Signals& s, vf grad, vf& m, vf& v) {
  const vf g = square_safe(grad);
  m += (1 - s.beta1) * (s.clip * g - m);
  v += (1 - s.beta2) * (g * g - v);
  const vf relative = v * s.v_scale + DEAD, per_root = reciprocal_root(relative);
  return {g, relative, per_root, clamp(m * s.m_scale * per_root, -CLIP, CLIP)};
}

// The same of the tile's vector at `at`.
INLINE Seen see_gradient(const Signals& s, const DefaultTile& tile, long at) {
  vf m = load(tile.m + at), v = load(tile.v + at);
  const Seen seen = see_gradient(s, load(tile.grad + at), m, v);
  store(tile.m + at, m);
  store(tile.v + at, v);
  return seen;
}

// The moments, and the coordinate's own inputs, as seen from the side that the direction points to,
// which is left where the step will be.
INLINE void default_inputs(const Signals& s, const DefaultTile& tile) {
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) {
    const long at = (long)i * W;
    const Seen seen = see_gradient(s, tile, at);
    const vf side = sign(seen.direction);
    store(tile.step + at, side);
    store(tile.x + at, side * clamp(seen.g * s.g_scale * seen.per_root, -CLIP, CLIP));
    store(tile.x + TV + at, side * seen.direction);
    store(tile.x + 2 * TV + at, log_normal(seen.relative) * 0.125f);
    store(tile.x + 3 * TV + at, side * clamp(load(tile.param + at) * s.theta_scale, -CLIP, CLIP));
  }
}

// The direction of Adam as the LSTM bends it.
template <int H>
INLINE void default_bends(int hidden, const float* forward, const float* head, const Signals& s,
                          const DefaultTile& tile) {
  default_inputs(s, tile);
  vf bends[DEFAULT_BENDS][V];
  float *h = tile.cell, *c = h + hidden * (long)TV;
  Kept out = {tile.h, c, nullptr, nullptr};
  layer_forward<Lstm, H, false>(hidden, DEFAULT_INPUTS, forward, tile.x, h, c, out);
  memcpy(h, tile.h, sizeof(float) * hidden * TV);
#pragma GCC unroll 3
  for (int r = 0; r < DEFAULT_BENDS; r++)
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) bends[r][i] = set1(head[r]);
  multiply<DEFAULT_BENDS>(head + DEFAULT_BENDS, h, hidden, bends);
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) {
    const vf fresh = load(tile.x + i * W), direction = load(tile.x + TV + i * W);
    const vf bent = direction * (1.0f + TURN * tanh(bends[0][i])) +
                    ADD * tanh(bends[1][i]) * fresh + FREE * tanh(bends[2][i]);
    store(tile.step + i * W, load(tile.step + i * W) * bent * -s.length);
  }
}

constexpr int NO_CELL = -1;

// The whole tile: reads grad, param, m, v and cell; leaves the new m, v, cell and the step. H: units, 0
// for any number of them, NO_CELL for none.
template <int H>
INLINE void default_tile(int hidden, const float* forward, const float* head, const Signals& s,
                         const DefaultTile& tile) {
  if constexpr (H == NO_CELL) {
#pragma GCC unroll 8
    for (int i = 0; i < V; i++)
      store(tile.step + i * W, see_gradient(s, tile, (long)i * W).direction * -s.length);
  } else {
    default_bends<H>(H ? H : hidden, forward, head, s, tile);
  }
}

}  // namespace
