// tanh and the sigmoid on numbers of 16 bits: polynomials on pieces, whose coefficients are looked up
// in registers.
#pragma once
#include <stdint.h>

namespace {

constexpr double ONE = 32768;      // of results, and of h
constexpr double ARGUMENT = 4096;  // of arguments: [-8, 8) in 16 bits

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

// Of a polynomial on each piece: the coefficients of 1, t, ... `t` is the part of a piece that an
// argument has behind it, in [0, 1), and 1 less on every other piece: what is left of its bits if all but
// the last of those that say which piece are shifted out.
template <int N, int PIECES>
struct PieceTable {
  alignas(64) int16_t of[N][PIECES];
};

// Of pieces of a length, the first from 0 on, those behind `positive` before 0: where the low bits of
// their arguments lead to. Through the function's values at Chebyshev's points, in [-1, 1]: nearly the
// best polynomials.
template <int N, int PIECES>
constexpr PieceTable<N, PIECES> make_table(double (*function)(double), const double (&points)[N],
                                           double length, int positive) {
  PieceTable<N, PIECES> table = {};
  for (int i = 0; i < PIECES; i++) {
    const int start = i < positive ? i : i - PIECES;
    double t[N] = {}, newton[N] = {};  // divided differences
    for (int k = 0; k < N; k++) {
      t[k] = (1 + points[k]) / 2 - i % 2;
      newton[k] = function((start + i % 2 + t[k]) * length);
    }
    for (int order = 1; order < N; order++)
      for (int k = N - 1; k >= order; k--) newton[k] = (newton[k] - newton[k - 1]) / (t[k] - t[k - order]);
    double coefficients[N] = {};
    for (int k = N - 1; k >= 0; k--) {  // times (t - t[k]), plus the next
      for (int power = N - 1; power > 0; power--)
        coefficients[power] = coefficients[power - 1] - t[k] * coefficients[power];
      coefficients[0] = newton[k] - t[k] * coefficients[0];
    }
    for (int power = 0; power < N; power++) table.of[power][i] = fixed(coefficients[power]);
  }
  return table;
}

constexpr double QUARTIC[5] = {-0.95105651629515353, -0.58778525229247314, 0, 0.58778525229247314,
                               0.95105651629515353};
constexpr double CUBIC[4] = {-0.92387953251128674, -0.38268343236508977, 0.38268343236508977,
                             0.92387953251128674};
constexpr double PARABOLA[3] = {-0.86602540378443865, 0, 0.86602540378443865};

// On 64 pieces of [-8, 8), at whose ends tanh is 1 but for 2e-7. In 16 bits off by 6e-5 and 1.1e-4.
constexpr PieceTable<4, 64> TANH = make_table<4, 64>(tanh_of, CUBIC, 0.25, 32);
constexpr PieceTable<3, 64> SIGMOID = make_table<3, 64>(sigmoid_of, PARABOLA, 0.25, 32);

// On 8 pieces of [0, 5.33), at whose end tanh is 1 but for 5e-5. In 16 bits off by 7e-5 and 1.4e-4.
constexpr int PIECES_PER_SIZE = 24;  // of 2^-12, times 2^-16
constexpr int LARGEST_SIZE = 8 * 65536 / PIECES_PER_SIZE;
constexpr double half_tanh_of(double x) { return tanh_of(x) / 2; }
constexpr PieceTable<4, 8> SIGMOID_OF_SIZE =
    make_table<4, 8>(half_tanh_of, CUBIC, 65536 / ARGUMENT / PIECES_PER_SIZE, 8);
constexpr PieceTable<5, 8> TANH_OF_SIZE =
    make_table<5, 8>(tanh_of, QUARTIC, 65536 / ARGUMENT / PIECES_PER_SIZE, 8);

}  // namespace
