// Tensors in strips, as the optimizer's step goes through them.
//
// A tensor's state is feature-major, so a tile's rows lie megabytes apart. Coordinates therefore
// go through in strips long enough for a row's piece to fill a good part of a page; while a strip
// is computed the rows of the next one are prefetched.
#pragma once
#include "parallel.h"
#include "short_weights.h"
#include "storage.h"

namespace {

constexpr long STRIP = 512;  // coordinates
constexpr long STRIP_TILES = STRIP / TV;

struct Update {
  Shape shape;
  const UpdateArguments* a;
  Packed packed;
  const ShortCells* short_cells;  // null: `packed` is what is computed with
  const long* first_strip;  // for each tensor, and the total behind
  long chunk_strips;
};

// About 0.1 ms of work: starting a thread costs a third of that.
inline long strips_in_chunk(const Shape& shape) { return 1 + 13000 / shape.weights(); }

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

// Some rows' pieces of the strip that comes next, so that all its tiles fetch all of them.
INLINE void prefetch(const Update& job, const Span& next, long tile) {
  if (!next.tensor) return;
  const long rows = job.shape.state_rows(), bytes = (long)next.length * size_of(job.a->state_type);
  for (long r = rows * tile / STRIP_TILES; r < rows * (tile + 1) / STRIP_TILES; r++) {
    const char* row = state_at(job, next, r);
    for (long b = 0; b < bytes; b += 64) __builtin_prefetch(row + b, 1, 2);
  }
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

INLINE void read_gradient(const Update& job, const Span& span, long tile, float* grad) {
  const UpdateArguments& a = *job.a;
  const long at = span.start + tile * TV;
  read_row(a.grad_type, (const char*)span.tensor->grad + at * size_of(a.grad_type),
           tile_length(span, tile), grad);
  if (a.maximize)
    for (int v = 0; v < V; v++) store(grad + v * W, -load(grad + v * W));
}

// Parameters stay where they are in the lanes that are bad.
INLINE void move_parameters(const Update& job, const Span& span, long tile, const vf* step,
                            const vi* bad) {
  const UpdateArguments& a = *job.a;
  const long at = span.start + tile * TV;
  char* param_at = (char*)span.tensor->param + at * size_of(a.param_type);
  float param[TV];
  read_row(a.param_type, param_at, tile_length(span, tile), param);
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) {
    vf old = load(param + v * W);
    store(param + v * W, bad[v] ? old : old * a.keep + step[v] * a.lr);
  }
  write_row(a.param_type, param, tile_length(span, tile), param_at);
}

// `Tiles` reads the state of a strip, moves one tile, writes the state.
template <class Tiles>
void update_chunk(void* context, long index, void* memory) {
  const Update& job = *(const Update*)context;
  Arena arena = {(char*)memory};
  Tiles tiles(job, arena);
  const long total = job.first_strip[job.a->count], begin = index * job.chunk_strips;
  const long end = begin + job.chunk_strips < total ? begin + job.chunk_strips : total;
  long tensor = find_tensor(job.first_strip, job.a->count, begin);
  Span span = span_at(job, begin, &tensor);
  for (long strip = begin; strip < end; strip++) {
    Span next = {};
    if (strip + 1 < end) next = span_at(job, strip + 1, &tensor);
    tiles.read(span);
    for (long tile = 0; tile * TV < span.length; tile++) {
      prefetch(job, next, tile);
      tiles.move(span, tile);
    }
    tiles.write(span);
    span = next;
  }
}

}  // namespace
