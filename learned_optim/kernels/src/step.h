// One forward step of the stacked cells: state in place, one rule or one per leading index.
#pragma once
#include "layers.h"
#include "parallel.h"

namespace {

constexpr long STEP_CHUNK_TILES = 64;

struct Step {
  Shape shape;
  long rules, coordinates;           // P, N
  long grads_stride, weights_stride; // floats from one rule to the next; 0: shared
  const float *grads, *weights;
  float *state, *out;  // (P, S, N), (P, N)
  float scale;

  long tiles() const { return (coordinates + TV - 1) / TV; }
  long chunks_per_rule() const { return (tiles() + STEP_CHUNK_TILES - 1) / STEP_CHUNK_TILES; }
};

struct StepScratch {
  float *packed, *state, *h, *grads, *x, *out;
};

inline StepScratch lay_out_step(const Shape& shape, Arena& arena) {
  const long row = TV;
  StepScratch scratch;
  scratch.packed = arena.take<float>(shape.packed());
  scratch.state = arena.take<float>(shape.state_rows() * row);
  scratch.h = arena.take<float>(shape.hidden * row);
  scratch.grads = arena.take<float>(row);
  scratch.x = arena.take<float>(2 * row);
  scratch.out = arena.take<float>(row);
  return scratch;
}

// The state's rows in `scratch.state` before -> after, the step in `scratch.out`.
template <class Cell, int H, class Between = Nothing>
INLINE void tile_step(const Shape& shape, const Packed& packed, const StepScratch& scratch,
                      float scale, Between between = {}) {
  const int hidden = H ? H : shape.hidden;
  const long rows = hidden * (long)TV;
  features(shape, scratch.grads, scratch.x);
  const float* x = scratch.x;
  for (int l = 0; l < shape.layers; l++) {
    float *h = scratch.state + Cell::VECTORS * l * rows, *c = h + rows;
    Kept out = {scratch.h, c, nullptr, nullptr};
    layer_forward<Cell, H, false>(hidden, shape.layer_inputs(l), packed.layer[l].forward, x, h, c,
                                  out, between);
    memcpy(h, scratch.h, sizeof(float) * rows);
    x = h;
  }
  vf out[V];
  head_forward(packed.head, hidden, x, out);
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) store(scratch.out + v * W, out[v] * scale);
}

template <class Cell, int H>
void step_chunk(void* context, long index, void* memory) {
  const Step& job = *(const Step*)context;
  const long rule = index / job.chunks_per_rule(), part = index % job.chunks_per_rule();
  const long n = job.coordinates, rows = job.shape.state_rows();
  Arena arena = {(char*)memory};
  StepScratch scratch = lay_out_step(job.shape, arena);
  const Packed packed =
      pack(job.shape, job.weights + rule * job.weights_stride, scratch.packed, NO_BACKWARD);
  float* state = job.state + rule * rows * n;
  const long end = (part + 1) * STEP_CHUNK_TILES;
  for (long i = part * STEP_CHUNK_TILES; i < end && i < job.tiles(); i++) {
    const long first = i * TV;
    const int valid = n - first < TV ? (int)(n - first) : TV;
    gather_rows(job.grads + rule * job.grads_stride + first, n, 1, valid, scratch.grads);
    gather_rows(state + first, n, rows, valid, scratch.state);
    tile_step<Cell, H>(job.shape, packed, scratch, job.scale);
    scatter_rows(scratch.state, n, rows, valid, state + first);
    scatter_rows(scratch.out, n, 1, valid, job.out + rule * n + first);
  }
}

typedef void (*Chunk)(void*, long, void*);

// Of the sizes that are compiled for, LSTMs alone: the other cells are for the paper's ablation.
inline Chunk step_for(const Shape& shape) {
  if (shape.cell == LSTM && shape.hidden == 4) return step_chunk<Lstm, 4>;
  if (shape.cell == LSTM && shape.hidden == 8) return step_chunk<Lstm, 8>;
  if (shape.cell == LSTM && shape.hidden == 20) return step_chunk<Lstm, 20>;
  return with_cell(shape.cell, [](auto cell) -> Chunk { return step_chunk<decltype(cell), 0>; });
}

inline int run_step(Step& job, int threads) {
  Arena measure = {nullptr};
  lay_out_step(job.shape, measure);
  Job work = {step_for(job.shape), &job, job.rules * job.chunks_per_rule(), measure.used};
  return run(work, threads);
}

}  // namespace
