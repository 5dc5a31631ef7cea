// Tensors in strips, as the optimizer's step goes through them.
//
// A tensor's state is feature-major, so a tile's rows lie megabytes apart. Coordinates therefore
// go through in strips long enough for a row's piece to fill a good part of a page; while a strip
// is computed the rows of the next one are fetched.
#pragma once
#include "parallel.h"
#include "short_weights.h"
#include "storage.h"

namespace {

constexpr long LINE = 64;  // bytes

struct Update {
  Shape shape;
  const UpdateArguments* a;
  Packed packed;
  const ShortCells* short_cells;  // null: `packed` is what is computed with
  const long* first_strip;  // for each tensor, and the total behind
  long strip, chunk_strips;
};

// Coordinates. Many rows lie in as many pages, of which a strip is to use a good part; few rows are to
// stay in the nearest cache, with those of the strip after them.
inline long strip_of(const Shape& shape) { return shape.state_rows() > 32 ? 512 : 256; }

// About 0.1 ms of work: starting a thread costs a third of that.
inline long strips_in_chunk(const Shape& shape) {
  return (1 + 13000 / shape.weights()) * 512 / strip_of(shape);
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

// Lines of the state of the strip that comes next, which are still to be fetched: row after row, a few
// at a time while a tile is computed, as a CPU drops those that it has no room to wait for. Gradients
// and parameters it fetches ahead by itself.
struct Ahead {
  const char *row, *at;
  long bytes, stride, rows;

  // The last of a row may lie behind its piece of the strip.
  INLINE void fetch(int lines) {
    if (!rows) return;
    for (int i = 0; i < lines; i++) __builtin_prefetch(at + i * LINE, 1, 3);
    at += lines * LINE;
    if (at < row + bytes) return;
    at = row += stride;
    rows--;
  }
};

inline Ahead ahead_of(const Update& job, const Span& next) {
  if (!next.tensor) return {};
  const char* row = state_at(job, next, 0);
  const int size = size_of(job.a->state_type);
  return {row, row, (long)next.length * size, next.tensor->count * size, job.shape.state_rows()};
}

// Of what a tile has of the state, a share for each of so many calls.
INLINE int lines_for(const Update& job, long calls) {
  const long bytes = job.shape.state_rows() * TV * size_of(job.a->state_type);
  return calls ? (int)((bytes + LINE * calls - 1) / (LINE * calls)) : 0;
}

inline Span span_at(const Update& job, long strip, long* tensor) {
  while (job.first_strip[*tensor + 1] <= strip) ++*tensor;
  const UpdateTensor* found = job.a->tensors + *tensor;
  const long start = (strip - job.first_strip[*tensor]) * job.strip, left = found->count - start;
  return {found, start, (int)(left < job.strip ? left : job.strip)};
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
    Ahead ahead = ahead_of(job, next);
    for (long tile = 0; tile * TV < span.length; tile++) tiles.move(span, tile, ahead);
    tiles.write(span);
    span = next;
  }
}

}  // namespace
