// Passes over the whole step of a large matrix, before and behind its orthogonalisation: as few as there
// can be, since ten of them take as long as Adam's step.
#pragma once
#include "take.h"

namespace {

// f of each vector of a piece, as its place and the numbers in it.
template <class F>
INLINE void each_of_piece(long total, long piece, F f) {
  const long start = piece * PIECE, end = start + PIECE < total ? start + PIECE : total;
  for (long i = start; i < end; i += W) f(i, end - i < W ? end - i : (long)W);
}

// What is behind the last number is zero.
INLINE vf load_some(int type, const void* p, long count) {
  if (count == W) return load_as(type, p);
  char padded[4 * W] = {};
  memcpy(padded, p, count * size_of(type));
  return load_as(type, padded);
}

INLINE void store_some(int type, void* p, vf v, long count) {
  if (count == W) return store_as(type, p, v);
  char padded[4 * W];
  store_as(type, padded, v);
  memcpy(p, padded, count * size_of(type));
}

struct Normalize {
  const NormalizeArguments& a;
  double* sums;  // of each piece: the order in which they are added up must not depend on threads
  // Their product divides by the norm; alone, 1 / norm may be subnormal, which is flushed, or too large.
  float first, factor;
};

// In float64, where no square overflows; sixteen numbers at a time in float32's registers.
inline void squares_chunk(void* context, long index, void*) {
  const Normalize& job = *(const Normalize*)context;
  typedef double vd __attribute__((vector_size(8 * W)));
  vd sum = {};
  each_of_piece(job.a.count, index, [&](long i, long count) {
    const vd x = __builtin_convertvector(load_some(FLOAT32, job.a.numbers + i, count), vd);
    sum += x * x;
  });
  double total = 0;
  for (int lane = 0; lane < W; lane++) total += sum[lane];
  job.sums[index] = total;
}

template <int TYPE>
void shrink_chunk(void* context, long index, void*) {
  const Normalize& job = *(const Normalize*)context;
  char* to = (char*)job.a.to;
  each_of_piece(job.a.count, index, [&](long i, long count) {
    const vf x = job.first * load_some(FLOAT32, job.a.numbers + i, count);
    store_some(TYPE, to + i * size_of(TYPE), job.factor * x, count);
  });
}

inline int run_normalize(const NormalizeArguments* a) {
  const long pieces = (a->count + PIECE - 1) / PIECE;
  const int threads = pieces < 4 ? 1 : a->threads;
  Normalize job = {*a, (double*)malloc(sizeof(double) * (pieces + 1)), 0, 0};
  if (!job.sums) return 1;
  Job squares = {squares_chunk, &job, pieces, 64};
  int failed = run(squares, threads);
  double total = 0;
  for (long i = 0; i < pieces; i++) total += job.sums[i];
  free(job.sums);
  *a->norm = __builtin_sqrt(total);
  job.first = *a->norm > 0x1p64 ? 0x1p-64f : *a->norm < 0x1p-64 ? 0x1p64f : 1.0f;
  job.factor = *a->norm > 0 ? (float)(1 / (*a->norm * job.first)) : 0.0f;
  Job shrink = {a->type == BFLOAT16 ? shrink_chunk<BFLOAT16> : shrink_chunk<FLOAT32>, &job, pieces, 64};
  return failed | run(shrink, threads);
}

struct Finish {
  const FinishArguments& a;
  int broken;
};

template <int TYPE>
INLINE vf finished(const FinishArguments& a, long i, long count) {
  const vf step = load_some(FLOAT32, a.step + i, count);
  const vf straight = load_some(TYPE, (const char*)a.straight + i * size_of(TYPE), count);
  return step + a.blend * (a.size * straight - step);
}

template <int TYPE>
void look_chunk(void* context, long index, void*) {
  Finish& job = *(Finish*)context;
  vi any = {};
  each_of_piece(job.a.count, index,
                [&](long i, long count) { any |= not_finite(finished<TYPE>(job.a, i, count)); });
  if (any_lane(any)) __atomic_store_n(&job.broken, 1, __ATOMIC_RELAXED);
}

template <int TYPE>
void finish_chunk(void* context, long index, void*) {
  const FinishArguments& a = ((const Finish*)context)->a;
  each_of_piece(a.count, index, [&](long i, long count) {
    char* param = (char*)a.param + i * size_of(a.param_type);
    const vf owed = load_some(FLOAT32, a.owed + i, count), before = load_some(a.param_type, param, count);
    const Deferred now = defer(finished<TYPE>(a, i, count), owed, a.share, a.due);
    store_some(a.param_type, param, before * a.keep + now.taken * a.lr, count);
    store_some(FLOAT32, a.owed + i, now.owed, count);
  });
}

inline int run_finish(const FinishArguments* a) {
  const long pieces = (a->count + PIECE - 1) / PIECE;
  const int threads = pieces < 4 ? 1 : a->threads;
  const bool shorter = a->straight_type == BFLOAT16;
  Finish job = {*a, 0};
  Job look = {shorter ? look_chunk<BFLOAT16> : look_chunk<FLOAT32>, &job, pieces, 64};
  int failed = run(look, threads);
  if (failed || job.broken) return failed;
  Job move = {shorter ? finish_chunk<BFLOAT16> : finish_chunk<FLOAT32>, &job, pieces, 64};
  return run(move, threads);
}

}  // namespace
