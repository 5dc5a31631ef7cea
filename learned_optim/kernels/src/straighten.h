// The last stage of small matrices without bases: part of the step orthogonalised by Newton-Schulz
// iterations (`matrices.straighten`, `Default.finish`), then taken. One matrix is one chunk of work.
#pragma once
#include "default_rule.h"
#include "matrix_steps.h"
#include "products.h"

namespace {

// A matrix of at least as many columns as rows, short x wide, and what its iterations need.
struct StraightScratch {
  long height, width;
  Rows x, next, across, gram, square;
};

inline StraightScratch lay_out_straight(Arena& arena, long rows, long columns) {
  const long height = rows < columns ? rows : columns, width = rows < columns ? columns : rows;
  const auto take = [&](long count, long length) {
    return Rows{arena.take<float>(count * whole_vectors(length)), whole_vectors(length)};
  };
  return {height, width, take(height, width), take(height, width), take(width, height),
          take(height, height), take(height, height)};
}

// f of each vector's place in the first `rows` rows.
template <class F>
INLINE void each_vector(const Rows& x, long rows, F f) {
  for (long i = 0; i < rows; i++)
    for (long j = 0; j < x.stride; j += W) f(i * x.stride + j);
}

// x <- a x + (b x x^T + c (x x^T)^2) x
INLINE void iterate(StraightScratch& s, const float* abc) {
  transpose(entries(s.x), s.height, s.width, s.across);
  product(entries(s.x), s.across, s.height, s.width, s.height, s.gram);
  product(entries(s.gram), s.gram, s.height, s.height, s.height, s.square);
  each_vector(s.gram, s.height, [&](long at) {
    store(s.gram.at + at, abc[1] * load(s.gram.at + at) + abc[2] * load(s.square.at + at));
  });
  product(entries(s.gram), s.x, s.height, s.height, s.width, s.next);
  each_vector(s.x, s.height, [&](long at) {
    store(s.x.at + at, abc[0] * load(s.x.at + at) + load(s.next.at + at));
  });
}

// x: the matrix divided by its norm; returns the root mean square of what it was.
INLINE float normalize(const StraightScratch& s) {
  vf peaks = {}, sum = {};
  each_vector(s.x, s.height, [&](long at) {
    const vf y = load(s.x.at + at);
    peaks = vmax(vmax(peaks, y), -y);
  });
  float peak = 0;
  for (int i = 0; i < W; i++) peak = peaks[i] > peak ? peaks[i] : peak;
  // Two divisions, so that the squares of tiny and huge entries stay finite.
  const float inverse = peak > 0 ? 1 / peak : 1;
  each_vector(s.x, s.height, [&](long at) {
    const vf y = inverse * load(s.x.at + at);
    store(s.x.at + at, y);
    sum += y * y;
  });
  const float norm = __builtin_sqrtf(lane_sum(sum)), shrink = norm > 1 ? 1 / norm : 1;
  each_vector(s.x, s.height, [&](long at) { store(s.x.at + at, shrink * load(s.x.at + at)); });
  return peak * (norm / __builtin_sqrtf((float)(s.height * s.width)));
}

inline void straighten_chunk(void* context, long index, void* memory) {
  const StraightenArguments& a = **(const StraightenArguments**)context;
  const MatrixStep& t = a.tensors[index];
  const StraightenTerms& terms = a.terms[index];
  Arena arena = {(char*)memory};
  StraightScratch s = lay_out_straight(arena, t.rows, t.columns);
  const bool wide = t.rows <= t.columns;
  if (wide)
    spread_out(t.step, t.rows, t.columns, s.x);
  else
    transpose({t.step, t.columns, 1}, t.rows, t.columns, s.x);
  const float least = 1e-30f, length = terms.length > least ? terms.length : least;
  const float relative = normalize(s) / length;
  const float size = terms.gain * terms.length * __builtin_sqrtf(relative * relative + DEAD) *
                     __builtin_sqrtf((float)s.width);
  for (long k = 0; k < a.iterations; k++) iterate(s, a.quintics + 3 * k);
  Rows straight = s.x;
  if (!wide) {
    transpose(entries(s.x), s.height, s.width, s.across);
    straight = s.across;
  }
  for (long i = 0; i < t.rows; i++)
    for (long j = 0; j < t.columns; j++) {
      float& step = t.step[i * t.columns + j];
      step += terms.blend * (size * straight.at[i * straight.stride + j] - step);
    }
  take_matrix(t, a.lr, a.keep, terms.share, terms.due, a.param_type);
}

inline int run_straighten(const StraightenArguments* a) {
  size_t most = 0;
  long work = 0;
  for (long i = 0; i < a->count; i++) {
    Arena measure = {};
    const StraightScratch s = lay_out_straight(measure, a->tensors[i].rows, a->tensors[i].columns);
    if (measure.used > most) most = measure.used;
    work += a->iterations * s.height * s.height * s.width;
  }
  Job job = {straighten_chunk, (void*)&a, a->count, most};
  return run(job, work < LEAST_WORK ? 1 : a->threads);
}

}  // namespace
