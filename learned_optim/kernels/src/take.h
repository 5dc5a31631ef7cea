// What comes last for a step that is whole: part of it is taken now, with what of the steps before
// falls due (`deferral`). One read and one write of the memory, no temporary.
#pragma once
#include "finite.h"

namespace {

// What is taken of a step now, and what is owed then, see deferral.py.
struct Deferred {
  vf taken, owed;
};

INLINE Deferred defer(vf step, vf owed, float share, float due) {
  const vf all = owed + step;
  return {step + share * (due * all - step), (1 - due) * all};
}

// `count` numbers from `start` on.
INLINE void take_some(const TakeArguments& a, long start, long count) {
  char* params = (char*)a.param + start * size_of(a.param_type);
  float param[TV], owed[TV], step[TV];
  for (long done = 0; done < count; done += TV) {
    const int length = count - done < TV ? (int)(count - done) : TV;
    char* param_at = params + done * size_of(a.param_type);
    char* owed_at = (char*)(a.owed + start + done);
    read_row(a.param_type, param_at, length, param);
    read_row(FLOAT32, owed_at, length, owed);
    read_row(FLOAT32, (const char*)(a.step + start + done), length, step);
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) {
      const Deferred now = defer(load(step + i * W), load(owed + i * W), a.share, a.due);
      store(param + i * W, load(param + i * W) * a.keep + now.taken * a.lr);
      store(owed + i * W, now.owed);
    }
    write_row(a.param_type, param, length, param_at);
    write_row(FLOAT32, owed, length, owed_at);
  }
}

inline void take_chunk(void* context, long index, void*) {
  const TakeArguments& a = **(const TakeArguments**)context;
  const long start = index * PIECE, left = a.count - start;
  take_some(a, start, left < PIECE ? left : PIECE);
}

inline int run_take(const TakeArguments* a) {
  const long pieces = (a->count + PIECE - 1) / PIECE;
  Job work = {take_chunk, (void*)&a, pieces, 64};
  // As in `run_finite`.
  return run(work, pieces < 16 ? 1 : a->threads);
}

}  // namespace
