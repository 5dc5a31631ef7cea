// What the last stages of small matrices share.
#pragma once
#include "take.h"

namespace {

// Multiply-adds from which more threads than one outlast their start.
constexpr long LEAST_WORK = 1 << 20;

// A whole step into the parameter; where a number of it is not finite, not at all.
INLINE void take_matrix(const MatrixStep& t, float lr, float keep, float share, float due, int type) {
  const long count = t.rows * t.columns;
  if (holds_not_finite<FLOAT32>((const char*)t.step, count)) return;
  take_some({count, t.step, t.param, t.owed, lr, keep, share, due, type, 1}, 0, count);
}

}  // namespace
