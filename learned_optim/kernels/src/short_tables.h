// tanh and the sigmoid on numbers of 16 bits, 32 at a time: polynomials on 64 pieces, whose
// coefficients are looked up in registers.
#pragma once
#include <stdint.h>

namespace {

constexpr int PIECES = 64;             // of [-8, 8), at whose ends tanh is 1 but for 2e-7
constexpr double PIECE_LENGTH = 0.25;
constexpr double ONE = 32768;          // of results, and of h
constexpr double ARGUMENT = 4096;      // of arguments: [-8, 8) in 16 bits

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

// The sigmoid of twice `x`.
constexpr double sigmoid_of(double x) { return 0.5 + tanh_of(x) / 2; }

// Of a polynomial on each piece, in t in [-1, 1): the coefficients of 1, t, ... A piece is at the
// index that the low bits of its arguments have: those from 0 on, then the negative ones.
template <int N>
struct PieceTable {
  alignas(64) int16_t of[N][PIECES];
};

// Through the function's values at Chebyshev's points: nearly the best polynomials.
template <int N>
constexpr PieceTable<N> make_table(double (*function)(double), const double (&points)[N]) {
  PieceTable<N> table = {};
  for (int i = 0; i < PIECES; i++) {
    const double middle = ((i < PIECES / 2 ? i : i - PIECES) + 0.5) * PIECE_LENGTH;
    double newton[N] = {};  // divided differences
    for (int k = 0; k < N; k++) newton[k] = function(middle + points[k] * PIECE_LENGTH / 2);
    for (int order = 1; order < N; order++)
      for (int k = N - 1; k >= order; k--)
        newton[k] = (newton[k] - newton[k - 1]) / (points[k] - points[k - order]);
    double coefficients[N] = {};
    for (int k = N - 1; k >= 0; k--) {  // times (t - points[k]), plus the next
      for (int power = N - 1; power > 0; power--)
        coefficients[power] = coefficients[power - 1] - points[k] * coefficients[power];
      coefficients[0] = newton[k] - points[k] * coefficients[0];
    }
    for (int power = 0; power < N; power++) table.of[power][i] = fixed(coefficients[power]);
  }
  return table;
}

constexpr double CUBIC[4] = {-0.92387953251128674, -0.38268343236508977, 0.38268343236508977,
                             0.92387953251128674};
constexpr double PARABOLA[3] = {-0.86602540378443865, 0, 0.86602540378443865};

// Off by 5e-6, and by 8e-5 near 0, where its slope is a quarter of that of tanh.
constexpr PieceTable<4> TANH = make_table(tanh_of, CUBIC);
constexpr PieceTable<3> SIGMOID = make_table(sigmoid_of, PARABOLA);

}  // namespace
