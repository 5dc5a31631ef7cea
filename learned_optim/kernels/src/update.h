// The optimizer's step: features, cells, head and parameter update of many tensors in one call.
//
// A tensor's state is feature-major, so a tile's rows lie megabytes apart. Coordinates therefore
// go through in strips long enough for a row's piece to fill a good part of a page; while a strip
// is computed the rows of the next one are prefetched.
#pragma once
#include "step.h"
#include "storage.h"

namespace {

constexpr long STRIP = 512;  // coordinates
constexpr long STRIP_TILES = STRIP / TV;

struct Update {
  Shape shape;
  const UpdateArguments* a;
  Packed packed;
  const long* first_strip;  // for each tensor, and the total behind
  long chunk_strips;
};

// About 0.1 ms of work: starting a thread costs a third of that.
inline long strips_in_chunk(const Shape& shape) { return 1 + 13000 / shape.weights(); }

struct UpdateScratch {
  StepScratch tile;
  float* state;  // per tile of the strip: state rows of TV floats
};

inline UpdateScratch lay_out_update(const Shape& shape, Arena& arena) {
  UpdateScratch scratch;
  scratch.tile = lay_out_step(shape, arena);
  scratch.state = arena.take<float>(STRIP * shape.state_rows());
  return scratch;
}

// A strip of one tensor.
struct Span {
  const UpdateTensor* tensor;
  long start;
  int length;
};

INLINE const char* state_at(const Update& job, const Span& span, long row) {
  const int size = size_of(job.a->state_type);
  return (const char*)span.tensor->state + (row * span.tensor->count + span.start) * size;
}

INLINE int tile_length(const Span& span, long tile) {
  const long left = span.length - tile * TV;
  return left < TV ? (int)left : TV;
}

template <int TYPE>
inline void read_state(const Update& job, const Span& span, float* state) {
  const long rows = job.shape.state_rows();
  for (long r = 0; r < rows; r++) {
    const char* from = state_at(job, span, r);
    for (long tile = 0; tile * TV < span.length; tile++)
      read_row(TYPE, from + tile * TV * size_of(TYPE), tile_length(span, tile),
               state + (tile * rows + r) * TV);
  }
}

template <int TYPE>
inline void write_state(const Update& job, const Span& span, const float* state) {
  const long rows = job.shape.state_rows();
  for (long r = 0; r < rows; r++) {
    char* to = (char*)state_at(job, span, r);
    for (long tile = 0; tile * TV < span.length; tile++)
      write_row(TYPE, state + (tile * rows + r) * TV, tile_length(span, tile),
                to + tile * TV * size_of(TYPE));
  }
}

// Some rows' pieces of the strip that comes next, so that all its tiles fetch all of them.
INLINE void prefetch(const Update& job, const Span& next, long tile) {
  if (!next.tensor) return;
  const long rows = job.shape.state_rows(), bytes = (long)next.length * size_of(job.a->state_type);
  for (long r = rows * tile / STRIP_TILES; r < rows * (tile + 1) / STRIP_TILES; r++) {
    const char* row = state_at(job, next, r);
    for (long b = 0; b < bytes; b += 64) __builtin_prefetch(row + b, 1, 2);
  }
}

// Takes the old state back in the lanes whose step is not finite; their parameters stay too.
inline void restore(const Update& job, const Span& span, long tile, vi* bad, float* state) {
  const long rows = job.shape.state_rows();
  const int type = job.a->state_type;
  float old[TV];
  for (long r = 0; r < rows; r++) {
    const char* from = state_at(job, span, r) + tile * TV * size_of(type);
    read_row(type, from, tile_length(span, tile), old);
    for (int v = 0; v < V; v++) {
      float* at = state + r * TV + v * W;
      store(at, bad[v] ? load(old + v * W) : load(at));
    }
  }
}

template <class Cell, int H>
INLINE void update_tile(const Update& job, const Span& span, long tile, UpdateScratch& scratch) {
  const UpdateArguments& a = *job.a;
  const int length = tile_length(span, tile);
  const long at = span.start + tile * TV;
  StepScratch& s = scratch.tile;
  s.state = scratch.state + tile * job.shape.state_rows() * TV;
  read_row(a.grad_type, (const char*)span.tensor->grad + at * size_of(a.grad_type), length, s.grads);
  if (a.maximize)
    for (int v = 0; v < V; v++) store(s.grads + v * W, -load(s.grads + v * W));
  tile_step<Cell, H>(job.shape, job.packed, s, a.scale);
  char* param_at = (char*)span.tensor->param + at * size_of(a.param_type);
  float param[TV];
  read_row(a.param_type, param_at, length, param);
  vi bad[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) {
    vf step = load(s.out + v * W), old = load(param + v * W);
    bad[v] = not_finite(step);
    store(param + v * W, bad[v] ? old : old * a.keep + step * a.lr);
  }
  vi any = bad[0];
  for (int v = 1; v < V; v++) any |= bad[v];
  if (__builtin_expect(any_lane(any), 0)) restore(job, span, tile, bad, s.state);
  write_row(a.param_type, param, length, param_at);
}

inline Span span_at(const Update& job, long strip, long* tensor) {
  while (job.first_strip[*tensor + 1] <= strip) ++*tensor;
  const UpdateTensor* found = job.a->tensors + *tensor;
  const long start = (strip - job.first_strip[*tensor]) * STRIP, left = found->count - start;
  return {found, start, left < STRIP ? (int)left : (int)STRIP};
}

// The tensor that piece number `piece` belongs to; `first[i]` is the first piece of tensor i.
inline long find_tensor(const long* first, long count, long piece) {
  long low = 0, high = count - 1;
  while (low < high) {
    long middle = (low + high + 1) / 2;
    if (first[middle] <= piece)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

template <class Cell, int H, int TYPE>
void update_chunk(void* context, long index, void* memory) {
  const Update& job = *(const Update*)context;
  Arena arena = {(char*)memory};
  UpdateScratch scratch = lay_out_update(job.shape, arena);
  const long total = job.first_strip[job.a->count], begin = index * job.chunk_strips;
  const long end = begin + job.chunk_strips < total ? begin + job.chunk_strips : total;
  long tensor = find_tensor(job.first_strip, job.a->count, begin);
  Span span = span_at(job, begin, &tensor);
  for (long strip = begin; strip < end; strip++) {
    Span next = {};
    if (strip + 1 < end) next = span_at(job, strip + 1, &tensor);
    read_state<TYPE>(job, span, scratch.state);
    for (long tile = 0; tile * TV < span.length; tile++) {
      prefetch(job, next, tile);
      update_tile<Cell, H>(job, span, tile, scratch);
    }
    write_state<TYPE>(job, span, scratch.state);
    span = next;
  }
}

template <class Cell, int H>
Chunk update_for_type(int state_type) {
  if (state_type == FLOAT16) return update_chunk<Cell, H, FLOAT16>;
  if (state_type == BFLOAT16) return update_chunk<Cell, H, BFLOAT16>;
  return update_chunk<Cell, H, FLOAT32>;
}

// See `step_for`.
inline Chunk update_for(const Shape& shape, int state_type) {
  if (shape.cell == LSTM && shape.hidden == 4) return update_for_type<Lstm, 4>(state_type);
  if (shape.cell == LSTM && shape.hidden == 8) return update_for_type<Lstm, 8>(state_type);
  if (shape.cell == LSTM && shape.hidden == 20) return update_for_type<Lstm, 20>(state_type);
  return with_cell(shape.cell,
                   [&](auto cell) { return update_for_type<decltype(cell), 0>(state_type); });
}

inline int run_update(const Shape& shape, const UpdateArguments* a) {
  float* memory = (float*)malloc(sizeof(float) * shape.packed());
  long* first = (long*)malloc(sizeof(long) * (a->count + 1));
  int failed = !memory || !first;
  if (!failed) {
    first[0] = 0;
    for (long i = 0; i < a->count; i++)
      first[i + 1] = first[i] + (a->tensors[i].count + STRIP - 1) / STRIP;
    const long strips = strips_in_chunk(shape);
    Update job = {shape, a, pack(shape, a->weights, memory, NO_BACKWARD), first, strips};
    Arena measure = {nullptr};
    lay_out_update(shape, measure);
    Job work = {update_for(shape, a->state_type), &job, (first[a->count] + strips - 1) / strips, measure.used};
    failed = run(work, a->threads);
  }
  free(memory);
  free(first);
  return failed;
}

}  // namespace
