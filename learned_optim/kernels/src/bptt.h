// Backpropagation through T steps of the LSTM: truncated, for the weights only; or, of one step,
// the whole vector-Jacobian product, also for the state before it and the gradient.
//
// A coordinate's gradients and the cotangents of its steps are constants, so coordinates are
// independent: each tile runs forward through time keeping its activations in the cache, then
// backward, which turns the kept gates into the gradients of their inputs, in place; then one
// matrix product over time and coordinates sums the weights' gradients. With one step that product
// would spend its time on reading and writing the sums, so it takes a batch of tiles at once.
//
// Sums: in float32 within a lane and the tiles of `flush_tiles`, in float64 beyond. Chunks are cut
// by the sizes alone and added in order, so threads do not change the result.
#pragma once
#include "layers.h"
#include "parallel.h"
#include "sums.h"

namespace {

constexpr long MAX_CHUNKS = 64;
constexpr long BATCH_TILES = 8;

struct Bptt {
  Shape shape;
  long leads, steps, coordinates;           // P, T, N; P * N coordinates share the weights
  const float *grads, *state, *cotangents;  // (P, T, N), (P, S, N), (P, T, N)
  const float* state_cotangents;            // (P, S, N), of the last state, or null for zeros
  float* last_state;                        // (P, S, N) or null
  float* first_state_cotangents;            // (P, S, N), with one step only, or null
  float* grad_cotangents;                   // (P, N), likewise
  const float* widths;                      // (P, N) of the smoothed features, or null
  float scale;
  Packed packed;
  double* partial;  // per chunk: shape.weights() sums
  long chunks;

  long lead_tiles() const { return (coordinates + TV - 1) / TV; }
  long tiles() const { return leads * lead_tiles(); }
  long batch_tiles() const { return steps == 1 ? BATCH_TILES : 1; }
  // Clearing and adding up a chunk's sums costs as much as five tiles of one step.
  long least_chunk_tiles() const { return steps < 16 ? 64 / steps : 4; }
  long flush_tiles() const { return steps < 16 ? 256 / steps : 16; }
};

// Where a tile's coordinates lie.
struct Place {
  long lead, first;
  int valid;
};

INLINE Place place_of(const Bptt& job, long tile) {
  const long lead = tile / job.lead_tiles(), first = tile % job.lead_tiles() * TV;
  const long left = job.coordinates - first;
  return {lead, first, left < TV ? (int)left : TV};
}

// What one layer keeps of all steps of a tile; step t's rows start at t * rows * TV.
struct Trace {
  const float* x;  // T steps of the layer's input rows
  float* h;        // T + 1 steps, the state before the first step in front
  float* c;        // likewise
  float* gates;    // T steps; overwritten by the gradients of their inputs
  float* tanh_c;   // T steps
  float* dh;       // H rows: gradient that flows back in time
  float* dc;       // likewise
  vf* sums;        // lane-wise sums of the weights' gradients, rows in the order of `gates`
};

struct Tile {
  float *features, *grads, *cotangents;  // T steps each
  float* from_above;                     // H rows: gradient that flows to the layer below
  float* d_features;                     // gradient by one step's features
  vf* head_sums;                         // H, then the bias
  Trace layer[MAX_LAYERS];
};

inline void lay_out_sums(const Shape& shape, Tile& tile, Arena& arena) {
  tile.head_sums = arena.take<vf>(shape.hidden + 1);
  for (int l = 0; l < shape.layers; l++)
    tile.layer[l].sums = arena.take<vf>(shape.layer_weights(l));
}

inline void lay_out_trace(const Shape& shape, long steps, Tile& tile, Arena& arena) {
  const long row = TV, rows = shape.hidden * row;
  tile.grads = arena.take<float>(steps * row);
  tile.cotangents = arena.take<float>(steps * row);
  tile.features = arena.take<float>(steps * shape.inputs * row);
  tile.from_above = arena.take<float>(rows);
  tile.d_features = arena.take<float>(shape.inputs * row);
  for (int l = 0; l < shape.layers; l++) {
    Trace& trace = tile.layer[l];
    trace.x = l == 0 ? tile.features : tile.layer[l - 1].h + rows;
    trace.h = arena.take<float>((steps + 1) * rows);
    trace.c = arena.take<float>((steps + 1) * rows);
    trace.gates = arena.take<float>(steps * 4 * rows);
    trace.tanh_c = arena.take<float>(steps * rows);
    trace.dh = arena.take<float>(rows);
    trace.dc = arena.take<float>(rows);
  }
}

// A batch of tiles that share the sums; in memory each lies `stride` floats behind the one before.
struct Batch {
  Tile tile[BATCH_TILES];
  long stride;
};

inline void lay_out(const Bptt& job, Batch& batch, Arena& arena) {
  lay_out_sums(job.shape, batch.tile[0], arena);
  const size_t before = arena.used;
  for (long b = 0; b < job.batch_tiles(); b++) {
    batch.tile[b] = batch.tile[0];
    lay_out_trace(job.shape, job.steps, batch.tile[b], arena);
  }
  batch.stride = (arena.used - before) / job.batch_tiles() / sizeof(float);
}

template <int H>
void tile_forward(const Bptt& job, const Tile& tile) {
  const Shape& shape = job.shape;
  const long rows = shape.hidden * (long)TV;
  for (long t = 0; t < job.steps; t++) {
    features(shape, tile.grads + t * TV, tile.features + t * shape.inputs * TV);
    for (int l = 0; l < shape.layers; l++) {
      const Trace& trace = tile.layer[l];
      int inputs = shape.layer_inputs(l);
      Kept out = {trace.h + (t + 1) * rows, trace.c + (t + 1) * rows, trace.gates + t * 4 * rows,
                  trace.tanh_c + t * rows};
      layer_forward<Lstm, H, true>(shape.hidden, inputs, job.packed.layer[l].forward,
                             trace.x + t * inputs * TV, trace.h + t * rows, trace.c + t * rows,
                             out);
    }
  }
}

// One step back through the gates of one layer. `head`: with the cotangent row, the gradient that
// the top layer's h gets from the step; else `above` holds what the layer above sends down.
INLINE void gates_backward(const Trace& trace, int hidden, long t, const float* head,
                           const float* cotangent, const float* above) {
  const long rows = hidden * (long)TV;
  float* gates = trace.gates + t * 4 * rows;
  for (int j = 0; j < hidden; j++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      const long at = j * TV + v * W;
      float* unit = gates + 4L * j * TV + v * W;
      vf i = load(unit), f = load(unit + TV), o = load(unit + 2 * TV), g = load(unit + 3 * TV);
      vf tanh_c = load(trace.tanh_c + t * rows + at);
      vf dh = load(trace.dh + at) + (head ? load(cotangent + v * W) * head[j] : load(above + at));
      vf through = dh * o;
      vf dc = load(trace.dc + at) + (through - through * tanh_c * tanh_c);
      vf di = dc * i;
      store(trace.dc + at, dc * f);
      store(unit, di * g * (1.0f - i));
      store(unit + TV, dc * load(trace.c + t * rows + at) * (f - f * f));
      store(unit + 2 * TV, through * tanh_c * (1.0f - o));
      store(unit + 3 * TV, di - di * g * g);
    }
}

template <int R>
INLINE const float* inputs_backward(const float* w, const float* d_gates, int gate_rows,
                                    float* out) {
  vf sums[R][V] = {};
  multiply<R>(w, d_gates, gate_rows, sums);
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store(out + r * TV + v * W, sums[r][v]);
  return w + (long)R * gate_rows;
}

// The gradients of `inputs` rows of x, then of the hidden rows before this step.
template <int H>
INLINE void layer_backward(const float* w, int hidden_, int inputs, const float* d_gates,
                           float* dx, float* dh) {
  const int hidden = H ? H : hidden_, count = inputs + hidden;
  float out[BACK_ROWS * TV] __attribute__((aligned(64)));
  for (int k = 0; k < count;) {
    int left = count - k, rows = left >= BACK_ROWS ? BACK_ROWS : left >= 4 ? 4 : 1;
    if (rows == BACK_ROWS)
      w = inputs_backward<BACK_ROWS>(w, d_gates, 4 * hidden, out);
    else if (rows == 4)
      w = inputs_backward<4>(w, d_gates, 4 * hidden, out);
    else
      w = inputs_backward<1>(w, d_gates, 4 * hidden, out);
    for (int r = 0; r < rows; r++, k++)
      memcpy(k < inputs ? dx + k * TV : dh + (k - inputs) * TV, out + r * TV, sizeof(float) * TV);
  }
}

template <int H>
void tile_backward(const Bptt& job, const Tile& tile) {
  const Shape& shape = job.shape;
  const long rows = shape.hidden * (long)TV;
  for (long t = job.steps - 1; t >= 0; t--)
    for (int l = shape.layers - 1; l >= 0; l--) {
      const Trace& trace = tile.layer[l];
      const float* head = l == shape.layers - 1 ? job.packed.head : nullptr;
      gates_backward(trace, H ? H : shape.hidden, t, head, tile.cotangents + t * TV,
                     tile.from_above);
      const int inputs = l > 0 ? shape.hidden : job.grad_cotangents ? shape.inputs : 0;
      layer_backward<H>(job.packed.layer[l].backward, shape.hidden, inputs,
                        trace.gates + t * 4 * rows, l > 0 ? tile.from_above : tile.d_features,
                        trace.dh);
    }
}

// Sums of `tiles` tiles; more than one only where there is one step.
template <int H>
void batch_sums(const Bptt& job, const Batch& batch, long tiles) {
  const Shape& shape = job.shape;
  const Tile& tile = batch.tile[0];
  const long steps = job.steps * tiles, tile_step = job.steps == 1 ? batch.stride : 0;
  const int hidden = H ? H : shape.hidden;
  const long rows = hidden * (long)TV;
  for (int l = 0; l < shape.layers; l++) {
    const Trace& trace = tile.layer[l];
    const int inputs = shape.layer_inputs(l);
    vf* sums = trace.sums;
    outer(trace.gates, 4 * hidden, trace.x, inputs, steps, tile_step, sums);
    sums += 4L * hidden * inputs;
    outer(trace.gates, 4 * hidden, trace.h, hidden, steps, tile_step, sums);
    add_rows(trace.gates, 4 * hidden, steps, tile_step, sums + 4L * hidden * hidden);
  }
  const float* top = tile.layer[shape.layers - 1].h + rows;
  const long cotangent_step = tile_step ? tile_step : TV, top_step = tile_step ? tile_step : rows;
  for (long t = 0; t < steps; t++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      vf cotangent = load(tile.cotangents + t * cotangent_step + v * W);
      for (int k = 0; k < hidden; k++)
        tile.head_sums[k] += cotangent * load(top + t * top_step + k * TV + v * W);
      tile.head_sums[hidden] += cotangent;
    }
}

inline void flush(const Shape& shape, const Tile& tile, double* to) {
  for (int l = 0; l < shape.layers; l++) {
    vf* sums = tile.layer[l].sums;
    const int widths[] = {shape.layer_inputs(l), shape.hidden, 1};
    for (int columns : widths) {
      flush_matrix(sums, shape.hidden, columns, to);
      sums += 4L * shape.hidden * columns;
      to += 4L * shape.hidden * columns;
    }
  }
  for (int k = 0; k <= shape.hidden; k++) {
    to[k] += lane_sum(tile.head_sums[k]);
    tile.head_sums[k] = vf{};
  }
}

// The layers' h and c rows of a (P, S, N) matrix to or from a tile's.
template <typename Rows>
INLINE void for_state(const Bptt& job, const Place& at, Rows rows) {
  const long hidden = job.shape.hidden, layers = job.shape.layers, n = job.coordinates;
  for (long l = 0; l < layers; l++) {
    const long h = (at.lead * layers + l) * 2 * hidden * n + at.first;
    rows(l, h, h + hidden * n);
  }
}

inline void load_tile(const Bptt& job, const Tile& tile, const Place& at) {
  const long n = job.coordinates, row = at.lead * job.steps * n + at.first;
  const int hidden = job.shape.hidden;
  gather_rows(job.grads + row, n, job.steps, at.valid, tile.grads);
  gather_rows(job.cotangents + row, n, job.steps, at.valid, tile.cotangents);
  for (long i = 0; i < job.steps * TV; i++) tile.cotangents[i] *= job.scale;
  for_state(job, at, [&](long l, long h, long c) {
    const Trace& trace = tile.layer[l];
    gather_rows(job.state + h, n, hidden, at.valid, trace.h);
    gather_rows(job.state + c, n, hidden, at.valid, trace.c);
    if (job.state_cotangents) {
      gather_rows(job.state_cotangents + h, n, hidden, at.valid, trace.dh);
      gather_rows(job.state_cotangents + c, n, hidden, at.valid, trace.dc);
    } else {
      memset(trace.dh, 0, sizeof(float) * hidden * TV);
      memset(trace.dc, 0, sizeof(float) * hidden * TV);
    }
  });
}

inline void store_last_state(const Bptt& job, const Tile& tile, const Place& at) {
  const int hidden = job.shape.hidden;
  const long n = job.coordinates, last = job.steps * hidden * TV;
  for_state(job, at, [&](long l, long h, long c) {
    scatter_rows(tile.layer[l].h + last, n, hidden, at.valid, job.last_state + h);
    scatter_rows(tile.layer[l].c + last, n, hidden, at.valid, job.last_state + c);
  });
}

inline void store_cotangents(const Bptt& job, const Tile& tile, const Place& at) {
  const int hidden = job.shape.hidden;
  const long n = job.coordinates;
  float row[TV], widths[TV];
  if (job.widths) {
    for (long i = 0; i < TV; i++) widths[i] = 1.0f;  // beyond the last coordinate
    gather_rows(job.widths + at.lead * n + at.first, n, 1, at.valid, widths);
  }
  features_backward(job.shape, tile.grads, job.widths ? widths : nullptr, tile.d_features, row);
  scatter_rows(row, n, 1, at.valid, job.grad_cotangents + at.lead * n + at.first);
  for_state(job, at, [&](long l, long h, long c) {
    scatter_rows(tile.layer[l].dh, n, hidden, at.valid, job.first_state_cotangents + h);
    scatter_rows(tile.layer[l].dc, n, hidden, at.valid, job.first_state_cotangents + c);
  });
}

template <int H>
void bptt_tile(const Bptt& job, const Tile& tile, const Place& at) {
  load_tile(job, tile, at);
  tile_forward<H>(job, tile);
  if (job.last_state) store_last_state(job, tile, at);
  tile_backward<H>(job, tile);
  if (job.grad_cotangents) store_cotangents(job, tile, at);
}

template <int H>
void bptt_chunk(void* context, long index, void* scratch) {
  const Bptt& job = *(const Bptt*)context;
  const Shape& shape = job.shape;
  Arena arena = {(char*)scratch};
  Batch batch;
  lay_out(job, batch, arena);
  double* partial = job.partial + index * shape.weights();
  memset(partial, 0, sizeof(double) * shape.weights());
  const Tile& sums = batch.tile[0];
  memset((void*)sums.head_sums, 0, sizeof(vf) * (shape.hidden + 1));
  for (int l = 0; l < shape.layers; l++)
    memset((void*)sums.layer[l].sums, 0, sizeof(vf) * shape.layer_weights(l));
  const long begin = job.tiles() * index / job.chunks, end = job.tiles() * (index + 1) / job.chunks;
  long unflushed = 0;
  for (long i = begin, count; i < end; i += count) {
    count = end - i < job.batch_tiles() ? end - i : job.batch_tiles();
    for (long b = 0; b < count; b++) bptt_tile<H>(job, batch.tile[b], place_of(job, i + b));
    batch_sums<H>(job, batch, count);
    unflushed += count;
    if (unflushed < job.flush_tiles() && i + count < end) continue;
    flush(shape, sums, partial);
    unflushed = 0;
  }
}

inline int run_bptt(Bptt& job, const float* weights, float* weight_grads, int threads) {
  const long size = job.shape.weights(), most = job.tiles() / job.least_chunk_tiles();
  job.chunks = most < 1 ? 1 : most < MAX_CHUNKS ? most : MAX_CHUNKS;
  float* memory = (float*)malloc(sizeof(float) * 2 * size);
  job.partial = (double*)malloc(sizeof(double) * size * job.chunks);
  int failed = !memory || !job.partial;
  if (!failed) {
    const Backward backward = job.grad_cotangents ? TO_GRADIENT : TO_STATE;
    job.packed = pack(job.shape, weights, memory, backward);
    Arena measure = {nullptr};
    Batch unused;
    lay_out(job, unused, measure);
    auto chunk = bptt_chunk<0>;
    if (job.shape.hidden == 4) chunk = bptt_chunk<4>;
    if (job.shape.hidden == 8) chunk = bptt_chunk<8>;
    if (job.shape.hidden == 20) chunk = bptt_chunk<20>;
    Job work = {chunk, &job, job.chunks, measure.used};
    failed = run(work, threads);
  }
  for (long i = 0; i < size && !failed; i++) {
    double sum = 0.0;
    for (long c = 0; c < job.chunks; c++) sum += job.partial[c * size + i];
    weight_grads[i] = (float)sum;
  }
  free(memory);
  free(job.partial);
  return failed;
}

}  // namespace
