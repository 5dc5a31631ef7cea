// The QR of a small square matrix by Householder's reflections, four at a time (Schreiber and van Loan,
// "A storage-efficient WY representation for products of Householder transformations", 1989).
//
// LAPACK's is made for large matrices: of 128 rows it runs at a tenth of what the CPU can multiply.
#pragma once
#include "parallel.h"
#include "products.h"

namespace {

constexpr int PANEL = 4;  // reflections that pass over the memory together
constexpr int MORE = 4;   // vectors of columns that they take at once

// I - v t v^T, the product of a panel's reflections; v has PANEL numbers a row.
struct Reflections {
  float* v;
  float t[PANEL][PANEL];  // upper triangular
};

// A matrix and its two factors, of rows as long as whole vectors.
struct Factors {
  long stride;
  float *matrix, *q;   // (n, stride): factorised in place; its orthogonal factor
  float *column, *v;   // a panel's columns, and the vectors of its reflections: (PANEL, stride)
  float* vs;           // of all panels, one behind another
  Reflections* panels;
};

inline Factors lay_out_factors(Arena& arena, long n) {
  Factors s;
  s.stride = whole_vectors(n);
  s.matrix = arena.take<float>(n * s.stride);
  s.q = arena.take<float>(n * s.stride);
  s.column = arena.take<float>(PANEL * s.stride);
  s.v = arena.take<float>(PANEL * s.stride);
  const long panels = (n + PANEL - 1) / PANEL;
  s.vs = arena.take<float>(panels * PANEL * n);
  s.panels = arena.take<Reflections>(panels);
  return s;
}

// x <- x - v (t or t^T) v^T x, for `rows` rows of some vectors of columns.
template <int VECTORS, bool TRANSPOSED>
INLINE void reflect_columns(float* x, long stride, const Reflections& p, long rows) {
  vf along[PANEL][VECTORS] = {}, mixed[PANEL][VECTORS];
  for (long i = 0; i < rows; i++)
#pragma GCC unroll 16
    for (int r = 0; r < PANEL; r++)
#pragma GCC unroll 16
      for (int b = 0; b < VECTORS; b++) along[r][b] += p.v[i * PANEL + r] * load(x + i * stride + b * W);
#pragma GCC unroll 16
  for (int r = 0; r < PANEL; r++)
#pragma GCC unroll 16
    for (int b = 0; b < VECTORS; b++) {
      mixed[r][b] = vf{};
#pragma GCC unroll 16
      for (int s = 0; s < PANEL; s++)
        mixed[r][b] += (TRANSPOSED ? p.t[s][r] : p.t[r][s]) * along[s][b];
    }
  for (long i = 0; i < rows; i++)
#pragma GCC unroll 16
    for (int b = 0; b < VECTORS; b++) {
      vf y = load(x + i * stride + b * W);
#pragma GCC unroll 16
      for (int r = 0; r < PANEL; r++) y -= p.v[i * PANEL + r] * mixed[r][b];
      store(x + i * stride + b * W, y);
    }
}

// The same of all columns from `from` on, and of some before it.
template <bool TRANSPOSED>
INLINE void reflect(float* x, long stride, const Reflections& p, long rows, long from) {
  long at = from / W * W;
  for (; at + MORE * W <= stride; at += MORE * W)
    reflect_columns<MORE, TRANSPOSED>(x + at, stride, p, rows);
  for (; at < stride; at += W) reflect_columns<1, TRANSPOSED>(x + at, stride, p, rows);
}

INLINE float dot(const float* a, const float* b, long length) {
  vf sum = {};
  for (long i = 0; i < length; i += W) sum += load(a + i) * load(b + i);
  return lane_sum(sum);
}

// The reflection that leaves nothing of a column below its row c: v, with 1 in that row; returns its
// factor, 0 where there is nothing. Of the column, row c becomes what is left.
INLINE float reflection(float* column, float* v, int c, long length) {
  for (long i = 0; i < length; i++) v[i] = i > c ? column[i] : 0.0f;
  const float below = dot(v, v, length), first = column[c];
  if (!(below > 0)) return 0.0f;
  const float norm = __builtin_sqrtf(first * first + below), left = first > 0 ? -norm : norm;
  const float scale = 1.0f / (first - left);
  for (long i = 0; i < length; i += W) store(v + i, load(v + i) * scale);
  v[c] = 1.0f;
  column[c] = left;
  return (left - first) / left;
}

// Factorise columns k to k + PANEL - 1, of which the rows from k on are left.
INLINE void factorise_panel(const Factors& s, Reflections& p, long n, long k) {
  const long rows = n - k, length = whole_vectors(rows);
  const int count = rows < PANEL ? (int)rows : PANEL;
  memset(s.v, 0, sizeof(float) * PANEL * s.stride);
  memset(p.t, 0, sizeof(p.t));
  memset(s.column, 0, sizeof(float) * PANEL * s.stride);
  for (long i = 0; i < rows; i++)
    for (int c = 0; c < count; c++) s.column[c * s.stride + i] = s.matrix[(k + i) * s.stride + k + c];
  for (int c = 0; c < count; c++) {
    float* v = s.v + c * s.stride;
    const float factor = reflection(s.column + c * s.stride, v, c, length);
    for (int later = c + 1; later < count; later++) {
      float* column = s.column + later * s.stride;
      const float along = factor * dot(v, column, length);
      for (long i = 0; i < length; i += W) store(column + i, load(column + i) - along * load(v + i));
    }
    float before[PANEL];
    for (int r = 0; r < c; r++) before[r] = factor * dot(s.v + r * s.stride, v, length);
    for (int r = 0; r < c; r++)
      for (int q = r; q < c; q++) p.t[r][c] -= p.t[r][q] * before[q];
    p.t[c][c] = factor;
  }
  for (long i = 0; i < rows; i++)
    for (int c = 0; c < PANEL; c++) p.v[i * PANEL + c] = s.v[c * s.stride + i];
  reflect<true>(s.matrix + k * s.stride, s.stride, p, rows, k + count);
  for (int c = 0; c < count; c++)
    for (int i = 0; i <= c; i++) s.matrix[(k + i) * s.stride + k + c] = s.column[c * s.stride + i];
}

// `matrix` becomes the triangular factor, below which anything stands; `q` the orthogonal one.
INLINE void factorise(const Factors& s, long n) {
  float* v = s.vs;
  long panels = 0;
  for (long k = 0; k < n; k += PANEL, panels++) {
    s.panels[panels].v = v;
    factorise_panel(s, s.panels[panels], n, k);
    v += (n - k) * PANEL;
  }
  memset(s.q, 0, sizeof(float) * n * s.stride);
  for (long i = 0; i < n; i++) s.q[i * s.stride + i] = 1.0f;
  while (panels--) {
    const long k = panels * PANEL;
    reflect<false>(s.q + k * s.stride, s.stride, s.panels[panels], n - k, k);
  }
}

}  // namespace
