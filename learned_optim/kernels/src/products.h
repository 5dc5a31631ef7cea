// Products of small matrices that stay in the caches, in rows as long as whole vectors.
//
// Of 16, 64 and 128 rows torch's take 2, 5 and 26 us, these 0.1, 3 and 21 (an Emerald Rapids), and what
// stands between two products costs no call.
#pragma once
#include "vec.h"

namespace {

INLINE long whole_vectors(long n) { return (n + W - 1) / W * W; }

// Rows of whole vectors; what is behind the last column of a matrix is zero.
struct Rows {
  float* at;
  long stride;
};

// A matrix in any order: entry (i, k) lies i * row + k * along behind the first.
struct Entries {
  const float* at;
  long row, along;
};

INLINE Entries entries(const Rows& x) { return {x.at, x.stride, 1}; }
INLINE Entries transposed(const Rows& x) { return {x.at, 1, x.stride}; }

// Vectors of columns whose sums share the registers, and rows of them.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int WIDEST = 4;
#else
constexpr int WIDEST = 2;
#endif
template <int C>
constexpr int TALL = C == 1 ? 8 : 4 * WIDEST / C;

template <int R, int C>
INLINE void product_tile(const Entries& a, const Rows& b, long inner, const Rows& c) {
  vf sums[R][C] = {};
  for (long k = 0; k < inner; k++) {
    vf x[C];
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) x[j] = load(b.at + k * b.stride + j * W);
#pragma GCC unroll 16
    for (int i = 0; i < R; i++)
#pragma GCC unroll 8
      for (int j = 0; j < C; j++) sums[i][j] += x[j] * a.at[i * a.row + k * a.along];
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; i++)
#pragma GCC unroll 8
    for (int j = 0; j < C; j++) store(c.at + i * c.stride + j * W, sums[i][j]);
}

template <int C>
inline void product_columns(const Entries& a, const Rows& b, long rows, long inner, const Rows& c) {
  long i = 0;
  for (; i + TALL<C> <= rows; i += TALL<C>)
    product_tile<TALL<C>, C>({a.at + i * a.row, a.row, a.along}, b, inner, {c.at + i * c.stride, c.stride});
  for (; i < rows; i++)
    product_tile<1, C>({a.at + i * a.row, a.row, a.along}, b, inner, {c.at + i * c.stride, c.stride});
}

// c <- a b, for `columns` columns of whole vectors.
inline void product(const Entries& a, const Rows& b, long rows, long inner, long columns, const Rows& c) {
  long j = 0;
  const long end = whole_vectors(columns);
  const auto from = [](const Rows& x, long column) { return Rows{x.at + column, x.stride}; };
  for (; j + WIDEST * W <= end; j += WIDEST * W)
    product_columns<WIDEST>(a, from(b, j), rows, inner, from(c, j));
  if (WIDEST > 2)
    for (; j + 2 * W <= end; j += 2 * W) product_columns<2>(a, from(b, j), rows, inner, from(c, j));
  for (; j < end; j += W) product_columns<1>(a, from(b, j), rows, inner, from(c, j));
}

// Row after row without gaps, to and from rows of whole vectors.
inline void spread_out(const float* from, long rows, long columns, const Rows& to) {
  for (long i = 0; i < rows; i++) {
    memcpy(to.at + i * to.stride, from + i * columns, sizeof(float) * columns);
    memset(to.at + i * to.stride + columns, 0, sizeof(float) * (whole_vectors(columns) - columns));
  }
}

inline void close_up(const Rows& from, long rows, long columns, float* to) {
  for (long i = 0; i < rows; i++)
    memcpy(to + i * columns, from.at + i * from.stride, sizeof(float) * columns);
}

// to <- from^T; `from` is rows x columns. In squares, as one side of it lies across the memory.
inline void transpose(const Entries& from, long rows, long columns, const Rows& to) {
  const long end = whole_vectors(rows);
  for (long i0 = 0; i0 < end; i0 += 16)
    for (long j = 0; j < columns; j++)
      for (long i = i0; i < i0 + 16 && i < end; i++)
        to.at[j * to.stride + i] = i < rows ? from.at[i * from.row + j * from.along] : 0.0f;
}

}  // namespace
