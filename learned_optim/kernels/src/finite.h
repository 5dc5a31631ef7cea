// Which of many tensors hold NaN or infinity: one read of the memory, no temporary.
#pragma once
#include "update.h"

namespace {

constexpr long PIECE = 1 << 16;  // numbers; a thread's share of work

struct Finite {
  const FiniteArguments* a;
  const long* first_piece;  // for each tensor, and the total behind
};

template <int TYPE>
INLINE bool holds_not_finite(const char* from, long count) {
  vi any = {};
  long i = 0;
  for (; i + W <= count; i += W) any |= not_finite(load_as(TYPE, from + i * size_of(TYPE)));
  char rest[4 * W] = {};
  memcpy(rest, from + i * size_of(TYPE), (count - i) * size_of(TYPE));
  any |= not_finite(load_as(TYPE, rest));
  return any_lane(any);
}

inline void finite_chunk(void* context, long index, void*) {
  const Finite& job = *(const Finite*)context;
  const long i = find_tensor(job.first_piece, job.a->count, index);
  const long start = (index - job.first_piece[i]) * PIECE, left = job.a->sizes[i] - start;
  const long count = left < PIECE ? left : PIECE;
  const int type = job.a->type;
  const char* from = (const char*)job.a->tensors[i] + start * size_of(type);
  bool found = type == FLOAT32    ? holds_not_finite<FLOAT32>(from, count)
               : type == BFLOAT16 ? holds_not_finite<BFLOAT16>(from, count)
                                  : holds_not_finite<FLOAT16>(from, count);
  if (found) __atomic_store_n(job.a->broken + i, 1, __ATOMIC_RELAXED);
}

inline int run_finite(const FiniteArguments* a) {
  long* first = (long*)malloc(sizeof(long) * (a->count + 1));
  if (!first) return 1;
  first[0] = 0;
  for (long i = 0; i < a->count; i++) {
    first[i + 1] = first[i] + (a->sizes[i] + PIECE - 1) / PIECE;
    a->broken[i] = 0;
  }
  Finite job = {a, first};
  long total = 0;
  for (long i = 0; i < a->count; i++) total += a->sizes[i];
  Job work = {finite_chunk, &job, first[a->count], 64};
  // More threads only where the work outlasts their start.
  int failed = run(work, total < 16 * PIECE ? 1 : a->threads);
  free(first);
  return failed;
}

}  // namespace
