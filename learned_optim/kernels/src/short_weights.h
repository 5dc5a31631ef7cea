// The weights of LSTMs in 16 bits, as `short_cells.h` multiplies them.
#pragma once
#include "layers.h"
#include "short_tables.h"

namespace {

constexpr int SHORT_ROWS = 8;  // sums that share the registers: the gates of two units

constexpr int LEAST_BITS = 4;  // behind the point of a weight

// One layer's weights: of pairs of inputs, and what the sums begin with.
struct ShortLayer {
  float* begin;     // first layer, a group: inputs + 1 rows of SHORT_ROWS; the last is the bias
  int32_t* bias;    // other layers: SHORT_ROWS a group
  int32_t* pairs;   // a group: a row of SHORT_ROWS for each pair, of x (not in the first layer), of h
  int32_t* shifts;  // SHORT_ROWS a group
};

struct ShortCells {
  ShortLayer layer[MAX_LAYERS];
  int32_t* head;  // of pairs
  float head_scale, head_bias;
};

// Numbers of 4 bytes that `pack_short` fills.
inline long short_packed(const Shape& shape) {
  const long rows = 4L * shape.hidden;
  long n = shape.hidden / 2;
  for (int layer = 0; layer < shape.layers; layer++)
    n += rows * (shape.inputs + 3 + (shape.layer_inputs(layer) + shape.hidden) / 2);
  return n;
}

inline float absolute(float x) { return x < 0 ? -x : x; }

inline int32_t to_integer(double x) { return (int32_t)(x + (x < 0 ? -0.5 : 0.5)); }

inline int32_t pair_of(double low, double high) {
  return (to_integer(low) & 0xffff) | (int32_t)((uint32_t)to_integer(high) << 16);
}

// The logarithm of the power of two that a row's weights are multiplied by: whatever the inputs, its
// sum stays within 31 bits, and each weight within 15.
inline int row_bits(const LayerWeights& w, int gate, int unit, float largest_input, bool first) {
  const float half = gate == 3 ? 1.0f : 0.5f;
  float sum = half * absolute(w.at(gate, unit, -1)), largest = 0;
  for (int k = 0; k < w.inputs + w.hidden; k++) {
    const float size = half * absolute(w.at(gate, unit, k));
    sum += size * (first && k < w.inputs ? largest_input : 1.0f);
    if (!(first && k < w.inputs) && size > largest) largest = size;
  }
  int bits = 15;
  while (bits > 0 && !(sum * (1 << bits) < 65000.0f && largest * (1 << bits) < 32767.0f)) bits--;
  return bits;
}

// False where weights are too large for 16 bits. `largest_input`: of the first layer.
inline bool pack_short_layer(const float* weights, const Shape& shape, int layer,
                             float largest_input, ShortLayer& out) {
  const int hidden = shape.hidden, inputs = shape.layer_inputs(layer);
  const LayerWeights w = {weights, hidden, inputs, Lstm::GATES};
  const bool first = layer == 0;
  float* begin = out.begin;
  int32_t *bias = out.bias, *pairs = out.pairs, *shifts = out.shifts;
  for (int j0 = 0; j0 < hidden; j0 += 2) {
    int bits[SHORT_ROWS];
    for (int r = 0; r < SHORT_ROWS; r++) {
      bits[r] = row_bits(w, r % 4, j0 + r / 4, largest_input, first);
      if (bits[r] < LEAST_BITS) return false;
      *shifts++ = bits[r] + 3;
    }
    const auto scaled = [&](int r, int k) {
      return (r % 4 == 3 ? 1.0 : 0.5) * w.at(r % 4, j0 + r / 4, k) * (1 << bits[r]);
    };
    const auto half = [&](int r) { return (double)(1 << (bits[r] + 2)); };
    for (int k = 0; first && k < inputs; k++)
      for (int r = 0; r < SHORT_ROWS; r++) *begin++ = (float)(scaled(r, k) * ONE);
    for (int r = 0; r < SHORT_ROWS; r++)
      if (first)
        *begin++ = (float)(scaled(r, -1) * ONE + half(r));
      else
        *bias++ = to_integer(scaled(r, -1) * ONE + half(r));
    for (int k = first ? inputs : 0; k < inputs + hidden; k += 2)
      for (int r = 0; r < SHORT_ROWS; r++) *pairs++ = pair_of(scaled(r, k), scaled(r, k + 1));
  }
  return true;
}

// Packs into `memory`, which holds `short_packed` numbers; false where weights are too large.
inline bool pack_short(const Shape& shape, const float* w, void* memory, ShortCells& cells) {
  int32_t* at = (int32_t*)memory;
  const long rows = 4L * shape.hidden;
  // Of the features: the logarithm of the largest float32 is below 89.
  const float largest = 89.0f * shape.features.inverse_p;
  for (int layer = 0; layer < shape.layers; layer++) {
    const long pairs = rows * (shape.hidden + (layer ? shape.hidden : 0)) / 2;
    float* begin = (float*)at;
    at += rows * (shape.inputs + 1);
    cells.layer[layer] = {begin, at, at + rows, at + rows + pairs};
    at += 2 * rows + pairs;
    if (!pack_short_layer(w, shape, layer, largest > 1 ? largest : 1, cells.layer[layer])) return false;
    w += shape.layer_weights(layer);
  }
  float sum = 0, top = 0;
  for (int k = 0; k < shape.hidden; k++) {
    sum += absolute(w[k]);
    if (absolute(w[k]) > top) top = absolute(w[k]);
  }
  if (!(sum < __builtin_inff())) return false;  // or not finite
  // Doubles, as a head may be next to nothing.
  const double by_top = 32767.0 / top, by_sum = 65000.0 / sum;
  const double scale = top == 0 ? 1 : by_top < by_sum ? by_top : by_sum;
  cells.head = at;
  for (int k = 0; k < shape.hidden; k += 2) *at++ = pair_of(scale * w[k], scale * w[k + 1]);
  cells.head_scale = (float)(1 / (scale * ONE));
  cells.head_bias = w[shape.hidden];
  return true;
}

}  // namespace
