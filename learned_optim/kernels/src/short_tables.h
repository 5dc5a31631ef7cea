// tanh and the sigmoid on numbers of 16 bits, 32 at a time: polynomials on 64 pieces, whose
// coefficients are looked up in registers.
#pragma once
#include <stdint.h>

namespace {

constexpr int TANH_PIECES = 64;      // of [-8, 8), at whose ends tanh is 1 but for 2e-7
constexpr double TANH_PIECE = 0.25;  // length of one
constexpr double ONE = 32768;        // of results, and of h
constexpr double ARGUMENT = 4096;    // of arguments: [-8, 8) in 16 bits

constexpr double exp_of(double x) {  // of numbers in [-16, 0]
  double term = 1, sum = 1;
  for (int i = 1; i < 20; i++) sum += term *= x / 16 / i;
  for (int i = 0; i < 4; i++) sum *= sum;
  return sum;
}

constexpr double tanh_of(double x) {
  const double e = exp_of(x < 0 ? 2 * x : -2 * x), t = (1 - e) / (1 + e);
  return x < 0 ? -t : t;
}

constexpr int16_t fixed(double x) {
  const double scaled = x * ONE + (x < 0 ? -0.5 : 0.5);
  return scaled >= 32767 ? 32767 : scaled <= -32768 ? -32768 : (int16_t)scaled;
}

// Coefficients of 1, t, t^2 and t^3, with t in [-1, 1) on each piece. Piece i is at the index that
// the low bits of an argument have: from 0 on, then the negative ones.
struct TanhTable {
  alignas(64) int16_t of[4][TANH_PIECES];
};

constexpr TanhTable make_tanh_table() {
  TanhTable table = {};
  for (int i = 0; i < TANH_PIECES; i++) {
    const double middle = ((i < TANH_PIECES / 2 ? i : i - TANH_PIECES) + 0.5) * TANH_PIECE;
    // Through the values at Chebyshev's points, +-a and +-b: nearly the best cubic.
    const double a = 0.38268343236508977, b = 0.92387953251128674;
    double even[2] = {}, odd[2] = {};
    for (int k = 0; k < 2; k++) {
      const double t = k ? b : a;
      const double up = tanh_of(middle + t * TANH_PIECE / 2), down = tanh_of(middle - t * TANH_PIECE / 2);
      even[k] = (up + down) / 2;
      odd[k] = (up - down) / 2 / t;
    }
    const double c2 = (even[1] - even[0]) / (b * b - a * a);
    const double c3 = (odd[1] - odd[0]) / (b * b - a * a);
    table.of[0][i] = fixed(even[0] - c2 * a * a);
    table.of[1][i] = fixed(odd[0] - c3 * a * a);
    table.of[2][i] = fixed(c2);
    table.of[3][i] = fixed(c3);
  }
  return table;
}

constexpr TanhTable TANH = make_tanh_table();

// The sigmoid of twice the argument, by half of tanh: parabolas are off by 8e-5 at most, near 0.
struct SigmoidTable {
  alignas(64) int16_t of[3][TANH_PIECES];
};

constexpr SigmoidTable make_sigmoid_table() {
  SigmoidTable table = {};
  for (int i = 0; i < TANH_PIECES; i++) {
    const double middle = ((i < TANH_PIECES / 2 ? i : i - TANH_PIECES) + 0.5) * TANH_PIECE;
    const double a = 0.86602540378443865;
    const double up = 0.5 + tanh_of(middle + a * TANH_PIECE / 2) / 2;
    const double down = 0.5 + tanh_of(middle - a * TANH_PIECE / 2) / 2;
    const double at = 0.5 + tanh_of(middle) / 2;
    table.of[0][i] = fixed(at);
    table.of[1][i] = fixed((up - down) / 2 / a);
    table.of[2][i] = fixed(((up + down) / 2 - at) / a / a);
  }
  return table;
}

constexpr SigmoidTable SIGMOID = make_sigmoid_table();

}  // namespace
