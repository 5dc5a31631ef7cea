// The optimizer's step of rules whose state is kept in float16, see `short_cells.h`.
#pragma once
#include "short_cells.h"
#include "step.h"

namespace {

#if defined(WITH_SHORT)

struct ShortUpdateScratch {
  ShortScratch tile;
  float *grads, *x;  // per tile of the strip: TV gradients, two rows of TV features
  uint16_t* state;   // likewise: state rows of TV numbers
};

inline ShortUpdateScratch lay_out_short_update(const Shape& shape, Arena& arena) {
  ShortUpdateScratch scratch;
  scratch.tile = lay_out_short(shape, arena);
  const long strip = strip_of(shape);
  scratch.grads = arena.take<float>(strip);
  scratch.x = arena.take<float>(2 * strip);
  scratch.state = arena.take<uint16_t>(strip * shape.state_rows());
  return scratch;
}

template <int H>
struct ShortTiles {
  const Update& job;
  const long rows;
  ShortUpdateScratch scratch;
  const bool dot = use_dot_products();
  const int lines;  // to fetch with each group of rows of sums
  bool finite;      // all of the strip's state

  ShortTiles(const Update& job, Arena& arena)
      : job(job),
        rows(job.shape.state_rows()),
        scratch(lay_out_short_update(job.shape, arena)),
        lines(lines_for(job, 4L * job.shape.layers * job.shape.hidden / SUM_ROWS)) {}

  // The features of all tiles in turn, as a small tile would wait for its logarithms.
  void read(const Span& span) {
    for (long i = 0; i * TV < span.length; i++) {
      read_gradient(job, span, i, scratch.grads + i * TV);
      short_features(job.shape.features, scratch.grads + i * TV, scratch.x + 2 * i * TV);
    }
    read_state(span);
  }

  // Zeros where there is no coordinate.
  void read_state(const Span& span) {
    const long whole = span.length / TV;
    vs most = {};
    const auto take = [&](uint16_t* to, vs row) {
      most = largest(most, row);
      write_whole(to, row);
    };
    for (long r = 0; r < rows; r++) {
      const uint16_t* from = (const uint16_t*)state_at(job, span, r);
      uint16_t* to = scratch.state + r * TV;
#pragma GCC unroll 4
      for (long i = 0; i < whole; i++) take(to + i * rows * TV, read_whole(from + i * TV));
      if (whole * TV < span.length)
        take(to + whole * rows * TV, read_some(from + whole * TV, tile_length(span, whole)));
    }
    finite = !any_not_finite(most);
  }

  // In the lanes of a tile whose state is not finite, `bad` is set: seldom, and so number by number.
  APART void find_not_finite(long tile, vi (&bad)[V]) {
    const uint16_t* state = at(tile);
    for (long r = 0; r < rows; r++)
      for (int i = 0; i < TV; i++)
        if ((state[r * TV + i] & 0x7c00) == 0x7c00) bad[i / W][i % W] = -1;
  }

  void write(const Span& span) {
    const long whole = span.length / TV;
    for (long r = 0; r < rows; r++) {
      uint16_t* to = (uint16_t*)state_at(job, span, r);
      const uint16_t* from = scratch.state + r * TV;
#pragma GCC unroll 4
      for (long i = 0; i < whole; i++)
        write_whole(to + i * TV, read_whole(from + i * rows * TV));
      if (whole * TV < span.length)
        write_some(to + whole * TV, tile_length(span, whole), read_whole(from + whole * rows * TV));
    }
  }

  INLINE uint16_t* at(long tile) { return scratch.state + tile * rows * TV; }

  // Takes the old state back in the lanes that are not sound.
  void restore(const Span& span, long index, Lanes sound) {
    for (long r = 0; r < rows; r++) {
      const uint16_t* old = (const uint16_t*)state_at(job, span, r) + index * TV;
      uint16_t* moved = at(index) + r * TV;
      write_whole(moved, choose(sound, read_whole(moved), read_some(old, tile_length(span, index))));
    }
  }

  void move(const Span& span, long index, Ahead& ahead) {
    vf step[V];
    vi bad[V] = {};
    if (__builtin_expect(!finite, 0)) find_not_finite(index, bad);
    short_step<H, 2>(job.shape, *job.short_cells, scratch.tile, scratch.x + 2 * index * TV, at(index),
                     step, dot, ahead, lines);
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      step[v] = step[v] * job.a->scale;
      // Numbers of 16 bits are finite whatever the gradient was; a head of huge weights is too much.
      bad[v] |= not_finite(load(scratch.grads + index * TV + v * W)) | not_finite(step[v]);
    }
    move_parameters(job, span, index, step, bad);
    const Lanes sound = sound_lanes(bad);
    if (__builtin_expect(!all_lanes(sound), 0)) restore(span, index, sound);
  }
};

inline Chunk short_update_for(int hidden) {
  if (hidden == 4) return update_chunk<ShortTiles<4>>;
  if (hidden == 8) return update_chunk<ShortTiles<8>>;
  if (hidden == 20) return update_chunk<ShortTiles<20>>;
  return update_chunk<ShortTiles<0>>;
}

#else

inline bool short_fits(const Shape&, int) { return false; }
inline void lay_out_short_update(const Shape&, Arena&) {}
inline Chunk short_update_for(int) { return nullptr; }

#endif

}  // namespace
