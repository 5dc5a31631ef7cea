// Sums over steps and coordinates, kept lane by lane: of products of rows (a weight matrix's
// gradient) and of rows (a bias's). Rows have TV floats.
#pragma once
#include "vec.h"

namespace {

// sums[r * K + k] += sum over steps and coordinates of d[r] * x[k], for R rows and C inputs.
template <int R, int C>
INLINE void outer_block(const float* d, long d_step, const float* x, long x_step, long steps,
                        vf* sums, int row_length) {
  vf block[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) block[r][c] = sums[r * row_length + c];
  for (long t = 0; t < steps; t++, d += d_step, x += x_step)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      vf in[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; c++) in[c] = load(x + c * TV + v * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        vf row = load(d + r * TV + v * W);
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) block[r][c] += row * in[c];
      }
    }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int c = 0; c < C; c++) sums[r * row_length + c] = block[r][c];
}

constexpr int OUTER_INPUTS = W == 16 ? 4 : 2;

// All of d (rows in fours) times all of x. `tile_step`: floats from one step to the next where
// each is another tile's, 0 where the steps are one tile's.
INLINE void outer(const float* d, int rows, const float* x, int inputs, long steps,
                  long tile_step, vf* sums) {
  for (int r = 0; r < rows; r += 4) {
    const float* dr = d + r * TV;
    const long d_step = tile_step ? tile_step : rows * (long)TV;
    const long x_step = tile_step ? tile_step : inputs * (long)TV;
    vf* at = sums + (long)r * inputs;
    int k = 0;
    for (; k + OUTER_INPUTS <= inputs; k += OUTER_INPUTS)
      outer_block<4, OUTER_INPUTS>(dr, d_step, x + k * TV, x_step, steps, at + k, inputs);
    for (; k + 2 <= inputs; k += 2)
      outer_block<4, 2>(dr, d_step, x + k * TV, x_step, steps, at + k, inputs);
    for (; k < inputs; k++)
      outer_block<4, 1>(dr, d_step, x + k * TV, x_step, steps, at + k, inputs);
  }
}

INLINE void add_rows(const float* d, int rows, long steps, long tile_step, vf* sums) {
  const long d_step = tile_step ? tile_step : rows * (long)TV;
  for (long t = 0; t < steps; t++, d += d_step)
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) sums[r] += load(d + r * TV + v * W);
}

// Adds the lane-wise sums to the caller's layout (gate rows one gate after the other), clears them.
inline void flush_matrix(vf* sums, int hidden, int columns, double* to) {
  for (int j = 0; j < hidden; j++)
    for (int q = 0; q < 4; q++)
      for (int k = 0; k < columns; k++, sums++) {
        to[((long)q * hidden + j) * columns + k] += lane_sum(*sums);
        *sums = vf{};
      }
}

}  // namespace
