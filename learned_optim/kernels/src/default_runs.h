// The rule `default` in meta-training: many runs under sets of weights of their own, the tensors of
// each side by side in one vector.
#pragma once
#include "default_survey.h"
#include "default_update.h"

namespace {

inline void lay_out_runs(const DefaultRunsArguments* a, DefaultTensor* tensors) {
  const long n = a->coordinates;
  for (long r = 0; r < a->rules; r++) {
    long at = 0;
    for (long i = 0; i < a->tensors; at += a->sizes[i++], tensors++)
      *tensors = {a->grads + r * n + at,
                  (void*)(a->params + r * n + at),
                  a->moments + 2 * r * n + at,
                  a->cell ? a->cell + 2L * a->hidden * r * n + at : nullptr,
                  a->steps ? a->steps + r * n + at : nullptr,
                  a->sizes[i],
                  n};
  }
}

template <int (*PASS)(const DefaultArguments*)>
int run_default_runs(const DefaultRunsArguments* a) {
  const long count = a->rules * a->tensors;
  DefaultTensor* tensors = (DefaultTensor*)malloc(sizeof(DefaultTensor) * (count + 1));
  if (!tensors) return 1;
  lay_out_runs(a, tensors);
  DefaultArguments all = {};
  all.count = count;
  all.rules = a->rules;
  all.tensors = tensors;
  all.weights = a->weights;
  all.signals = a->signals;
  all.survey = a->survey;
  all.hidden = a->hidden;
  all.threads = a->threads;
  const int failed = PASS(&all);
  free(tensors);
  return failed;
}

}  // namespace
