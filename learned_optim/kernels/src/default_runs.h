// The rule `default` in meta-training: a step of many runs under sets of weights of their own, the
// tensors of each side by side in one vector.
#pragma once
#include "default_control.h"
#include "default_survey.h"
#include "default_update.h"

namespace {

inline void lay_out_runs(const DefaultControlArguments* c, const DefaultRunsArguments* a,
                         DefaultTensor* tensors) {
  const long n = a->coordinates;
  for (long r = 0; r < c->rules; r++) {
    long at = 0;
    for (long i = 0; i < c->tensors; at += a->sizes[i++], tensors++)
      *tensors = {a->grads + r * n + at,
                  a->plain + r * n + at,
                  (void*)(a->params + r * n + at),
                  a->moments + 3 * r * n + at,
                  a->cell + 2L * c->hidden * r * n + at,
                  a->steps + r * n + at,
                  a->sizes[i],
                  n};
  }
}

inline int run_default_runs(const DefaultControlArguments* c, const DefaultRunsArguments* a) {
  const long before = HAND + controller_weights(c->units), count = c->rules * c->tensors;
  DefaultTensor* tensors = (DefaultTensor*)malloc(sizeof(DefaultTensor) * (count + 1));
  if (!tensors) return 1;
  lay_out_runs(c, a, tensors);
  DefaultArguments all = {};
  all.count = count;
  all.rules = c->rules;
  all.tensors = tensors;
  all.weights = c->weights + before;
  all.weights_stride = before + default_weights(c->hidden);
  all.signals = c->signals;
  all.survey = c->survey;
  all.hidden = c->hidden;
  all.threads = a->threads;
  const int failed = run_default_survey(&all) || run_default_control(c) || run_default_update(&all);
  free(tensors);
  return failed;
}

}  // namespace
