// Second pass of the rule `default`: moments, cell and step of every coordinate, in one read and
// one write of the memory.
#pragma once
#include "default_pieces.h"

namespace {

struct DefaultUpdate {
  const DefaultArguments* a;
  const long* first;              // see count_default_pieces
  const DefaultWeights* weights;  // of each rule
};

struct DefaultScratch {
  DefaultTile tile;
  float* forward;  // the weights of the piece's tensor
};

inline DefaultScratch lay_out_default(int hidden, Arena& arena) {
  DefaultScratch scratch;
  scratch.tile = lay_out_default_tile(hidden, arena);
  scratch.forward = arena.take<float>(default_forward_weights(hidden));
  return scratch;
}

inline Signals read_signals(const DefaultArguments& a, long tensor) {
  const long tensors = a.count / a.rules, rule = tensor / tensors;
  const float* column = a.signals + rule * SIGNALS * tensors + tensor % tensors;
  float values[SIGNALS];
  for (int i = 0; i < SIGNALS; i++) values[i] = column[i * tensors];
  Signals signals;
  memcpy(&signals, values, sizeof signals);
  return signals;
}

INLINE const char* cell_at(const DefaultArguments& a, const DefaultTensor& t, long row, long at) {
  return (const char*)t.cell + (row * t.stride + at) * size_of(a.cell_type);
}

INLINE void read_tile(const DefaultArguments& a, const DefaultTensor& t, long at, int length,
                      int hidden, const DefaultTile& tile) {
  read_grad(a, t.grad, at, length, tile.grad);
  read_param(a, t, at, length, tile.param);
  read_moments(t, at, length, tile.m, tile.v);
  if (!t.out) read_row(FLOAT32, (const char*)owed_at(t, at), length, tile.owed);
  for (long r = 0; r < 2 * hidden; r++)
    read_row(a.cell_type, cell_at(a, t, r, at), length, tile.cell + r * TV);
}

INLINE void write_state(const DefaultArguments& a, const DefaultTensor& t, long at, int length,
                        int hidden, const DefaultTile& tile) {
  write_row(FLOAT32, tile.m, length, (char*)(t.moments + at));
  write_row(FLOAT32, tile.v, length, (char*)(t.moments + t.stride + at));
  for (long r = 0; r < 2 * hidden; r++)
    write_row(a.cell_type, tile.cell + r * TV, length, (char*)cell_at(a, t, r, at));
}

// Puts `old` back into `row` in the lanes that are bad.
inline void put_back(const vi* bad, const float* old, float* row) {
  for (int i = 0; i < V; i++)
    store(row + i * W, bad[i] ? load(old + i * W) : load(row + i * W));
}

// Takes the old state back in the lanes whose step is not finite.
__attribute__((noinline)) inline void restore_state(const DefaultArguments& a,
                                                    const DefaultTensor& t, long at, int length,
                                                    const vi* bad, const DefaultTile& tile) {
  float m[TV], v[TV], old[TV];
  read_moments(t, at, length, m, v);
  put_back(bad, m, tile.m);
  put_back(bad, v, tile.v);
  for (long r = 0; r < 2 * a.hidden; r++) {
    read_row(a.cell_type, cell_at(a, t, r, at), length, old);
    put_back(bad, old, tile.cell + r * TV);
  }
}

// And what these lanes have moved.
__attribute__((noinline)) inline void restore_params(const DefaultArguments& a,
                                                     const DefaultTensor& t, long at, int length,
                                                     const vi* bad, const DefaultTile& tile) {
  float old[TV];
  read_param(a, t, at, length, old);
  put_back(bad, old, tile.param);
  read_row(FLOAT32, (const char*)owed_at(t, at), length, old);
  put_back(bad, old, tile.owed);
}

// Of a step, what is taken of it and of those before, which stay owed (`deferral`).
INLINE vf take_part(const Signals& s, vf step, vf& owed) {
  const vf all = owed + step;
  owed = (1 - s.due) * all;
  return step + s.share * (s.due * all - step);
}

// A whole tile of float32 under a rule without a cell, from memory to memory. False where a step is not
// finite: then nothing has changed.
INLINE bool move_straight(const DefaultArguments& a, const DefaultTensor& t, long at,
                          const Signals& s) {
  const float* grads = (const float*)t.grad + at;
  float *params = (float*)t.param + at, *ms = t.moments + at, *vs = ms + t.stride;
  vf m[V], v[V], step[V];
  vi bad = {};
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) {
    m[i] = load(ms + i * W);
    v[i] = load(vs + i * W);
    step[i] = see_gradient(s, load(grads + i * W), m[i], v[i]).direction * -s.length;
    bad |= not_finite(step[i]);
  }
  if (__builtin_expect(any_lane(bad), 0)) return false;
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) {
    store(ms + i * W, m[i]);
    store(vs + i * W, v[i]);
    if (t.out) {
      store(t.out + at + i * W, step[i]);
      continue;
    }
    vf owed = load(owed_at(t, at) + i * W);
    const vf taken = take_part(s, step[i], owed);
    store(params + i * W, load(params + i * W) * a.keep + taken * a.lr);
    store(owed_at(t, at) + i * W, owed);
  }
  return true;
}

// Hands the step out, or takes part of it, and what of the steps before falls due (`deferral`).
INLINE void write_step(const DefaultArguments& a, const DefaultTensor& t, long at, int length,
                       const Signals& s, const DefaultTile& tile) {
  vi bad[V], any = {};
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) any |= bad[i] = not_finite(load(tile.step + i * W));
  const bool broken = __builtin_expect(any_lane(any), 0);
  if (a.guard && broken) restore_state(a, t, at, length, bad, tile);
  if (t.out) {
    write_row(FLOAT32, tile.step, length, (char*)(t.out + at));
    return;
  }
#pragma GCC unroll 8
  for (int i = 0; i < V; i++) {
    vf owed = load(tile.owed + i * W);
    const vf taken = take_part(s, load(tile.step + i * W), owed);
    store(tile.param + i * W, load(tile.param + i * W) * a.keep + taken * a.lr);
    store(tile.owed + i * W, owed);
  }
  if (broken) restore_params(a, t, at, length, bad, tile);
  write_row(a.param_type, tile.param, length, (char*)t.param + at * size_of(a.param_type));
  write_row(FLOAT32, tile.owed, length, (char*)owed_at(t, at));
}

template <int H>
void default_update_piece(void* context, long index, void* memory) {
  const DefaultUpdate& job = *(const DefaultUpdate*)context;
  const DefaultArguments& a = *job.a;
  const int hidden = H == NO_CELL ? 0 : H ? H : a.hidden;
  Arena arena = {(char*)memory};
  const DefaultScratch scratch = lay_out_default(hidden, arena);
  const DefaultPiece piece = default_piece(&a, job.first, index);
  const DefaultTensor& tensor = a.tensors[piece.tensor];
  const Signals signals = read_signals(a, piece.tensor);
  const DefaultWeights& weights = job.weights[piece.tensor / (a.count / a.rules)];
  if (hidden) add_says(weights, hidden, signals.say, scratch.forward);
  const bool straight = H == NO_CELL && is_straight(a);
  for (int done = 0; done < piece.length; done += TV) {
    const int length = piece.length - done < TV ? piece.length - done : TV;
    const long at = piece.start + done;
    if (straight && length == TV && move_straight(a, tensor, at, signals)) continue;
    read_tile(a, tensor, at, length, hidden, scratch.tile);
    default_tile<H>(hidden, scratch.forward, weights.head, signals, scratch.tile);
    write_step(a, tensor, at, length, signals, scratch.tile);
    write_state(a, tensor, at, length, hidden, scratch.tile);
  }
}

inline int run_default_pieces(const DefaultArguments* a, const DefaultUpdate& job) {
  Arena measure = {nullptr};
  lay_out_default(a->hidden, measure);
  auto piece = a->hidden ? default_update_piece<0> : default_update_piece<NO_CELL>;
  if (a->hidden == 4) piece = default_update_piece<4>;
  if (a->hidden == 8) piece = default_update_piece<8>;
  const long pieces = job.first[a->count];
  Job work = {piece, (void*)&job, pieces, measure.used};
  return run(work, default_threads(a, pieces));
}

inline int run_default_update(const DefaultArguments* a) {
  if (!a->count) return 0;
  const long size = default_weights(a->hidden);
  long* first = (long*)malloc(sizeof(long) * (a->count + 1));
  DefaultWeights* weights = (DefaultWeights*)malloc(sizeof(DefaultWeights) * a->rules);
  float* memory = (float*)malloc(sizeof(float) * (size * a->rules + 1));
  int failed = !first || !weights || !memory;
  if (!failed) {
    count_default_pieces(a, first);
    for (long r = 0; a->hidden && r < a->rules; r++)
      weights[r] = pack_default(a->weights + r * a->weights_stride, a->hidden, memory + r * size);
    failed = run_default_pieces(a, {a, first, weights});
  }
  free(memory);
  free(weights);
  free(first);
  return failed;
}

}  // namespace
