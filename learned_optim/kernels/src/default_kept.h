// `control` of the rule `default` for the tensors of an optimizer, each of which keeps its counter,
// its gauge and its controller's state in memory of its own.
#pragma once
#include "default_control.h"

namespace {

// Side by side, as `run_default_control` wants them; counters are those of the step to come.
inline void gather_kept(const DefaultControlArguments& a, const DefaultKeptArguments& kept,
                        float* step) {
  const long n = a.tensors;
  for (long i = 0; i < n; i++) {
    step[i] = *kept.steps[i] + 1;
    for (long r = 0; r < GAUGE; r++) a.gauge[r * n + i] = kept.gauges[i][r];
    for (long r = 0; r < 2 * a.units; r++) a.cell[r * n + i] = kept.cells[i][r];
  }
}

inline void scatter_kept(const DefaultControlArguments& a, const DefaultKeptArguments& kept) {
  const long n = a.tensors;
  for (long i = 0; i < n; i++) {
    if (kept.finite && !kept.finite[i]) continue;
    *kept.steps[i] = a.step[i];
    for (long r = 0; r < GAUGE; r++) kept.gauges[i][r] = a.gauge[r * n + i];
    for (long r = 0; r < 2 * a.units; r++) kept.cells[i][r] = a.cell[r * n + i];
  }
}

inline int run_default_kept(const DefaultControlArguments* arguments,
                            const DefaultKeptArguments* kept) {
  DefaultControlArguments a = *arguments;
  const long n = a.tensors;
  float* memory = (float*)malloc(sizeof(float) * (n * (1 + GAUGE + 2 * a.units) + 1));
  if (!memory) return 1;
  a.step = memory;
  a.gauge = memory + n;
  a.cell = memory + (1 + GAUGE) * n;
  gather_kept(a, *kept, memory);
  const int failed = run_default_control(&a);
  if (!failed) scatter_kept(a, *kept);
  free(memory);
  return failed;
}

}  // namespace
