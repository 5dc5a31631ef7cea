// The optimizer's step of rules whose state is kept in float16, see `short_cells.h`.
#pragma once
#include "short_cells.h"
#include "step.h"
#include "strips.h"

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
  scratch.grads = arena.take<float>(STRIP);
  scratch.x = arena.take<float>(2 * STRIP);
  scratch.state = arena.take<uint16_t>(STRIP * shape.state_rows());
  return scratch;
}

// The lanes that a tile has, of 32.
INLINE __mmask32 lanes_of(const Span& span, long tile) {
  const int length = tile_length(span, tile);
  return length == TV ? ~0u : (1u << length) - 1;
}

template <int H>
struct ShortTiles {
  const Update& job;
  const long rows;
  ShortUpdateScratch scratch;

  ShortTiles(const Update& job, Arena& arena)
      : job(job), rows(job.shape.state_rows()), scratch(lay_out_short_update(job.shape, arena)) {}

  // The features of all tiles in turn, as a small tile would wait for its logarithms.
  void read(const Span& span) {
    for (long i = 0; i * TV < span.length; i++) {
      read_gradient(job, span, i, scratch.grads + i * TV);
      features(job.shape, scratch.grads + i * TV, scratch.x + 2 * i * TV);
    }
    read_state(span);
  }

  // Zeros where there is no coordinate.
  void read_state(const Span& span) {
    const long whole = span.length / TV;
    for (long r = 0; r < rows; r++) {
      const uint16_t* from = (const uint16_t*)state_at(job, span, r);
      uint16_t* to = scratch.state + r * TV;
#pragma GCC unroll 4
      for (long i = 0; i < whole; i++)
        _mm512_store_si512(to + i * rows * TV, _mm512_loadu_si512(from + i * TV));
      if (whole * TV < span.length)
        _mm512_store_si512(to + whole * rows * TV,
                           _mm512_maskz_loadu_epi16(lanes_of(span, whole), from + whole * TV));
    }
  }

  void write(const Span& span) {
    const long whole = span.length / TV;
    for (long r = 0; r < rows; r++) {
      uint16_t* to = (uint16_t*)state_at(job, span, r);
      const uint16_t* from = scratch.state + r * TV;
#pragma GCC unroll 4
      for (long i = 0; i < whole; i++)
        _mm512_storeu_si512(to + i * TV, _mm512_load_si512(from + i * rows * TV));
      if (whole * TV < span.length)
        _mm512_mask_storeu_epi16(to + whole * TV, lanes_of(span, whole),
                                 _mm512_load_si512(from + whole * rows * TV));
    }
  }

  INLINE uint16_t* at(long tile) { return scratch.state + tile * rows * TV; }

  // Takes the old state back in the lanes that are not sound.
  void restore(const Span& span, long index, __mmask32 sound) {
    for (long r = 0; r < rows; r++) {
      const uint16_t* old = (const uint16_t*)state_at(job, span, r) + index * TV;
      _mm512_mask_storeu_epi16(at(index) + r * TV, ~sound,
                               _mm512_maskz_loadu_epi16(lanes_of(span, index), old));
    }
  }

  void move(const Span& span, long index) {
    vf step[V], finite[V] = {};
    short_step<H, 2>(job.shape, *job.short_cells, scratch.tile, scratch.x + 2 * index * TV, at(index),
                     step, finite);
    vi bad[V];
    __mmask32 sound = 0;
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      step[v] = step[v] * job.a->scale;
      // The step itself, made of numbers of 16 bits, is finite whatever they were.
      bad[v] = not_finite(load(scratch.grads + index * TV + v * W)) | not_finite(finite[v]);
      sound |= (__mmask32)_mm512_testn_epi32_mask((__m512i)bad[v], (__m512i)bad[v]) << (v * W);
    }
    move_parameters(job, span, index, step, bad);
    if (__builtin_expect(~sound, 0)) restore(span, index, sound);
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
