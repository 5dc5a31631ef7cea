// Small matrices in the eigenbases of their gradients (`learned_optim/bases.py`, whose names these are):
// what is seen of a gradient, how the bases turn, and the way back. One matrix is one chunk of work.
#pragma once
#include "default_rule.h"
#include "matrix_steps.h"
#include "products.h"
#include "reflections.h"

namespace {

enum TurnKind { STILL, TURNING, FIRM };

// Room for matrices of up to `side` rows and columns.
struct BasisScratch {
  Rows grad, seen, product, other, left_turn, right_turn;
  Factors factors;
};

inline BasisScratch lay_out_bases(Arena& arena, long side) {
  const long stride = whole_vectors(side);
  const auto rows = [&] { return Rows{arena.take<float>(side * stride), stride}; };
  BasisScratch s = {rows(), rows(), rows(), rows(), rows(), rows(), {}};
  s.factors = lay_out_factors(arena, side);
  return s;
}

// A square matrix of the state as rows of whole vectors: where it lies, or a copy.
INLINE Rows whole_rows(float* at, long side, const Rows& copy) {
  if (side % W == 0) return {at, side};
  spread_out(at, side, side, copy);
  return copy;
}

// out <- left^T x right, A x B; `x` may be `out`.
INLINE void change(const Entries& left_transposed, const Rows& x, const Rows& right, long a, long b,
                   const Rows& between, const Rows& out) {
  product(entries(x), right, a, b, b, between);
  product(left_transposed, between, a, a, b, out);
}

// As numbers that can be squared and added up; one that is not finite becomes NaN.
INLINE void read_matrix(const BasisTensor& t, const Rows& to) {
  const char* from = (const char*)t.grad;
  const long size = size_of(t.grad_type);
  for (long i = 0; i < t.rows; i++) {
    float* row = to.at + i * to.stride;
    for (long j = 0; j < t.columns; j += W) {
      const long left = t.columns - j;
      vf g;
      if (left >= W) {
        g = load_as(t.grad_type, from + (i * t.columns + j) * size);
      } else {
        char padded[4 * W] = {};
        memcpy(padded, from + (i * t.columns + j) * size, left * size);
        g = load_as(t.grad_type, padded);
      }
      store(row + j, square_safe(g) + 0.0f * g);
    }
  }
}

// The running mean of a covariance, with a ridge, into the matrix to factorise.
INLINE void average(const SeeArguments& a, const Rows& news, long n, const float* spread,
                    const Factors& f) {
  float trace = 0;
  for (long i = 0; i < n; i++) trace += news.at[i * news.stride + i];
  const float ridge = a.ridge * (1 + trace / n), share = 1 / a.memory;
  for (long i = 0; i < n; i++) {
    float* row = f.matrix + i * f.stride;
    for (long j = 0; j < f.stride; j += W) store(row + j, share * load(news.at + i * news.stride + j));
    row[i] += (1 - share) * spread[i] + ridge;
  }
}

// (r q)_ii, which is (q^T matrix q)_ii: in four sums, as each addition waits for the one before.
INLINE float eigenvalue(const Factors& f, long n, long i) {
  float sums[4] = {};
  for (long j = i; j < n; j++) sums[j % 4] += f.matrix[i * f.stride + j] * f.q[j * f.stride + i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The turn of one side and its eigenvalues, which replace those before.
INLINE void find_turn(const SeeArguments& a, const Rows& news, long n, float* spread, Factors f,
                      const Rows& turn) {
  f.stride = whole_vectors(n);
  average(a, news, n, spread, f);
  factorise(f, n);
  for (long i = 0; i < n; i++) spread[i] = eigenvalue(f, n, i);
  // The factorisation is unique but for signs; these let no vector turn around.
  float* signs = f.column;
  for (long i = 0; i < f.stride; i++) signs[i] = i < n && f.matrix[i * f.stride + i] < 0 ? -1.0f : 1.0f;
  for (long i = 0; i < n; i++)
    for (long j = 0; j < f.stride; j += W)
      store(turn.at + i * turn.stride + j, load(f.q + i * f.stride + j) * load(signs + j));
}

// side <- side turn, and if it is to be firm, 1.5 side - 0.5 side side^T side of that.
INLINE void turn_side(float* side, long n, const Rows& turn, bool firm, const BasisScratch& s) {
  product({side, n, 1}, turn, n, n, n, s.product);
  if (firm) {
    product(transposed(s.product), s.product, n, n, n, s.grad);
    product(entries(s.product), s.grad, n, n, n, s.other);
    for (long i = 0; i < n; i++)
      for (long j = 0; j < whole_vectors(n); j += W) {
        float* at = s.product.at + i * s.product.stride + j;
        store(at, 1.5f * load(at) - 0.5f * load(s.other.at + i * s.other.stride + j));
      }
  }
  close_up(s.product, n, n, side);
}

INLINE float root_mean_square(const Rows& x, long rows, long columns) {
  vf sum = {};
  for (long i = 0; i < rows; i++)
    for (long j = 0; j < whole_vectors(columns); j += W) {
      const vf y = load(x.at + i * x.stride + j);
      sum += y * y;
    }
  return __builtin_sqrtf(lane_sum(sum) / (float)(rows * columns));
}

// Turn bases, momentum and what is seen.
INLINE void turn_bases(const SeeArguments& a, const BasisTensor& t, const BasisScratch& s) {
  const float least = 1.08420217e-19f;  // the root of the smallest normal number
  const float size = root_mean_square(s.seen, t.rows, t.columns);
  if (!(size < __builtin_inff())) return;
  const float inverse = size > least ? 1 / size : 0.0f;
  for (long i = 0; i < t.rows; i++)
    for (long j = 0; j < whole_vectors(t.columns); j += W)
      store(s.grad.at + i * s.grad.stride + j, inverse * load(s.seen.at + i * s.seen.stride + j));
  product(transposed(s.grad), s.grad, t.columns, t.rows, t.columns, s.product);
  find_turn(a, s.product, t.columns, t.spread + t.rows, s.factors, s.right_turn);
  transpose(entries(s.grad), t.rows, t.columns, s.other);
  product(entries(s.grad), s.other, t.rows, t.columns, t.rows, s.product);
  find_turn(a, s.product, t.rows, t.spread, s.factors, s.left_turn);
  turn_side(t.left, t.rows, s.left_turn, t.turn == FIRM, s);
  turn_side(t.right, t.columns, s.right_turn, t.turn == FIRM, s);
  change(transposed(s.left_turn), s.seen, s.right_turn, t.rows, t.columns, s.product, s.seen);
  spread_out(t.momentum, t.rows, t.columns, s.other);
  change(transposed(s.left_turn), s.other, s.right_turn, t.rows, t.columns, s.product, s.other);
  close_up(s.other, t.rows, t.columns, t.momentum);
}

inline void see_chunk(void* context, long index, void* memory) {
  const SeeArguments& a = **(const SeeArguments**)context;
  const BasisTensor& t = a.tensors[index];
  Arena arena = {(char*)memory};
  const BasisScratch s = lay_out_bases(arena, t.rows > t.columns ? t.rows : t.columns);
  read_matrix(t, s.grad);
  const Rows right = whole_rows(t.right, t.columns, s.other);
  change({t.left, 1, t.rows}, s.grad, right, t.rows, t.columns, s.product, s.seen);
  if (t.turn != STILL) turn_bases(a, t, s);
  close_up(s.seen, t.rows, t.columns, t.seen);
}

// Steps of one matrix out of its bases; where all of it is finite it is taken.
inline void unsee_chunk(void* context, long index, void* memory) {
  const UnseeArguments& a = **(const UnseeArguments**)context;
  const MatrixStep& t = a.tensors[index];
  Arena arena = {(char*)memory};
  const BasisScratch s = lay_out_bases(arena, t.rows > t.columns ? t.rows : t.columns);
  spread_out(t.step, t.rows, t.columns, s.seen);
  product({t.left, t.rows, 1}, s.seen, t.rows, t.rows, t.columns, s.product);
  transpose({t.right, t.columns, 1}, t.columns, t.columns, s.other);
  product(entries(s.product), s.other, t.rows, t.columns, t.columns, s.seen);
  close_up(s.seen, t.rows, t.columns, t.step);
  const float* terms = a.terms + 2 * index;
  take_matrix(t, a.lr, a.keep, terms[0], terms[1], a.param_type);
}

template <class Tensor>
int run_bases(void (*chunk)(void*, long, void*), void* context, long count, const Tensor* tensors,
              int threads) {
  long side = 0, work = 0;
  for (long i = 0; i < count; i++) {
    const Tensor& t = tensors[i];
    const long longer = t.rows > t.columns ? t.rows : t.columns;
    if (longer > side) side = longer;
    work += t.rows * t.columns * (t.rows + t.columns);
  }
  Arena measure = {};
  lay_out_bases(measure, side);
  Job job = {chunk, context, count, measure.used};
  return run(job, work < LEAST_WORK ? 1 : threads);
}

inline int run_see(const SeeArguments* a) {
  return run_bases(see_chunk, &a, a->count, a->tensors, a->threads);
}

inline int run_unsee(const UnseeArguments* a) {
  return run_bases(unsee_chunk, &a, a->count, a->tensors, a->threads);
}

}  // namespace
