// Many tensors cut into pieces of a fixed size, so that no result depends on who computes a piece.
#pragma once
#include "default_rule.h"
#include "storage.h"
#include "update.h"

namespace {

constexpr long DEFAULT_PIECE = 2048;  // coordinates

// A piece of one tensor.
struct DefaultPiece {
  long tensor, start;
  int length;
};

inline long default_pieces(const DefaultTensor& tensor) {
  return (tensor.count + DEFAULT_PIECE - 1) / DEFAULT_PIECE;
}

// first[i] <- the first piece of tensor i; behind it, the number of all.
inline void count_default_pieces(const DefaultArguments* a, long* first) {
  first[0] = 0;
  for (long i = 0; i < a->count; i++) first[i + 1] = first[i] + default_pieces(a->tensors[i]);
}

inline DefaultPiece default_piece(const DefaultArguments* a, const long* first, long index) {
  const long tensor = find_tensor(first, a->count, index);
  const long start = (index - first[tensor]) * DEFAULT_PIECE;
  const long left = a->tensors[tensor].count - start;
  return {tensor, start, (int)(left < DEFAULT_PIECE ? left : DEFAULT_PIECE)};
}

// Threads that are worth their start.
inline int default_threads(const DefaultArguments* a, long pieces) {
  return pieces < 16 ? 1 : a->threads;
}

// Whether gradients and parameters can be used where they are.
INLINE bool is_straight(const DefaultArguments& a) {
  return a.grad_type == FLOAT32 && a.param_type == FLOAT32 && !a.maximize;
}

INLINE void read_grad(const DefaultArguments& a, const void* grad, long at, int length, float* to) {
  read_row(a.grad_type, (const char*)grad + at * size_of(a.grad_type), length, to);
  if (a.maximize)
    for (int v = 0; v < V; v++) store(to + v * W, -load(to + v * W));
}

INLINE void read_param(const DefaultArguments& a, const DefaultTensor& t, long at, int length,
                       float* to) {
  read_row(a.param_type, (const char*)t.param + at * size_of(a.param_type), length, to);
}

INLINE void read_moments(const DefaultTensor& t, long at, int length, float* m, float* v) {
  read_row(FLOAT32, (const char*)(t.moments + at), length, m);
  read_row(FLOAT32, (const char*)(t.moments + t.stride + at), length, v);
}

INLINE float* owed_at(const DefaultTensor& t, long at) { return t.moments + 2 * t.stride + at; }

}  // namespace
