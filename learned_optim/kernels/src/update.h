// The optimizer's step: features, cells, head and parameter update of many tensors in one call.
#pragma once
#include "short_update.h"
#include "step.h"

namespace {

// Tiles of float32 in the registers, whatever the state is kept in.
template <class Cell, int H, int TYPE>
struct LongTiles {
  const Update& job;
  StepScratch tile;
  float* state;     // per tile of the strip: state rows of TV floats
  const int lines;  // to fetch with each group of units

  LongTiles(const Update& job, Arena& arena)
      : job(job), lines(lines_for(job, (long)job.shape.layers * (job.shape.hidden / GROUP<Cell>))) {
    tile = lay_out_step(job.shape, arena);
    state = arena.take<float>(job.strip * job.shape.state_rows());
  }

  void read(const Span& span) {
    const long rows = job.shape.state_rows();
    for (long r = 0; r < rows; r++) {
      const char* from = state_at(job, span, r);
      for (long i = 0; i * TV < span.length; i++)
        read_row(TYPE, from + i * TV * size_of(TYPE), tile_length(span, i), state + (i * rows + r) * TV);
    }
  }

  void write(const Span& span) {
    const long rows = job.shape.state_rows();
    for (long r = 0; r < rows; r++) {
      char* to = (char*)state_at(job, span, r);
      for (long i = 0; i * TV < span.length; i++)
        write_row(TYPE, state + (i * rows + r) * TV, tile_length(span, i), to + i * TV * size_of(TYPE));
    }
  }

  // Takes the old state back in the lanes whose step is not finite.
  void restore(const Span& span, long index, const vi* bad) {
    float old[TV];
    for (long r = 0; r < job.shape.state_rows(); r++) {
      const char* from = state_at(job, span, r) + index * TV * size_of(TYPE);
      read_row(TYPE, from, tile_length(span, index), old);
      for (int v = 0; v < V; v++) {
        float* at = tile.state + r * TV + v * W;
        store(at, bad[v] ? load(old + v * W) : load(at));
      }
    }
  }

  INLINE void move(const Span& span, long index, Ahead& ahead) {
    tile.state = state + index * job.shape.state_rows() * TV;
    read_gradient(job, span, index, tile.grads);
    tile_step<Cell, H>(job.shape, job.packed, tile, job.a->scale, [&] { ahead.fetch(lines); });
    vf step[V];
    vi bad[V], any = {};
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      step[v] = load(tile.out + v * W);
      any |= bad[v] = not_finite(step[v]);
    }
    move_parameters(job, span, index, step, bad);
    if (__builtin_expect(any_lane(any), 0)) restore(span, index, bad);
  }
};

template <class Cell, int H>
Chunk update_for_type(int state_type) {
  if (state_type == FLOAT16) return update_chunk<LongTiles<Cell, H, FLOAT16>>;
  if (state_type == BFLOAT16) return update_chunk<LongTiles<Cell, H, BFLOAT16>>;
  return update_chunk<LongTiles<Cell, H, FLOAT32>>;
}

// See `step_for`.
inline Chunk update_for(const Update& job) {
  const Shape& shape = job.shape;
  const int type = job.a->state_type;
  if (job.short_cells) return short_update_for(shape.hidden);
  if (shape.cell == LSTM && shape.hidden == 4) return update_for_type<Lstm, 4>(type);
  if (shape.cell == LSTM && shape.hidden == 8) return update_for_type<Lstm, 8>(type);
  if (shape.cell == LSTM && shape.hidden == 20) return update_for_type<Lstm, 20>(type);
  return with_cell(shape.cell, [&](auto cell) { return update_for_type<decltype(cell), 0>(type); });
}

inline size_t update_scratch(const Update& job) {
  Arena measure = {nullptr};
  if (job.short_cells) {
    lay_out_short_update(job.shape, measure);
  } else {
    lay_out_step(job.shape, measure);
    measure.take<float>(job.strip * job.shape.state_rows());
  }
  return measure.used;
}

// Packs the weights into `memory`: in 16 bits where the state is in float16 and they fit.
inline void pack_update(Update& job, float* memory, ShortCells* cells) {
  if (short_fits(job.shape, job.a->state_type) && pack_short(job.shape, job.a->weights, memory, *cells))
    job.short_cells = cells;
  else
    job.packed = pack(job.shape, job.a->weights, memory, NO_BACKWARD);
}

inline int run_update(const Shape& shape, const UpdateArguments* a) {
  const long size = shape.packed() > short_packed(shape) ? shape.packed() : short_packed(shape);
  float* memory = (float*)malloc(sizeof(float) * size);
  long* first = (long*)malloc(sizeof(long) * (a->count + 1));
  int failed = !memory || !first;
  if (!failed) {
    const long strip = strip_of(shape), strips = strips_in_chunk(shape);
    first[0] = 0;
    for (long i = 0; i < a->count; i++)
      first[i + 1] = first[i] + (a->tensors[i].count + strip - 1) / strip;
    ShortCells cells;
    Update job = {shape, a, {}, nullptr, first, strip, strips};
    pack_update(job, memory, &cells);
    Job work = {update_for(job), &job, (first[a->count] + strips - 1) / strips, update_scratch(job)};
    failed = run(work, a->threads);
  }
  free(memory);
  free(first);
  return failed;
}

}  // namespace
