// First pass of the rule `default`: of each tensor, whether its gradient is not finite, and the
// sums that the controller sees. Lane by lane over a piece, then pieces in order, in float64.
#pragma once
#include "default_pieces.h"

namespace {

constexpr int DEFAULT_SUMS = 7;  // g2, v, m2, gm, theta2, go, o2
constexpr int SURVEY = 1 + DEFAULT_SUMS;

struct DefaultSurvey {
  const DefaultArguments* a;
  const long* first;  // see count_default_pieces
  double* found;      // (pieces, SURVEY)
};

inline void survey_piece(void* context, long index, void*) {
  const DefaultSurvey& job = *(const DefaultSurvey*)context;
  const DefaultArguments& a = *job.a;
  const DefaultPiece piece = default_piece(&a, job.first, index);
  const DefaultTensor& tensor = a.tensors[piece.tensor];
  const bool straight = is_straight(a);
  vf sums[DEFAULT_SUMS][V] = {};
  vi bad = {};
  for (int done = 0; done < piece.length; done += TV) {
    const int length = piece.length - done < TV ? piece.length - done : TV;
    const long at = piece.start + done;
    float copies[6][TV];
    const float *grads = copies[0], *params = copies[1], *ms = copies[2], *vs = copies[3],
                *owed = copies[4], *plain = copies[5];
    if (straight && length == TV) {
      grads = (const float*)tensor.grad + at;
      params = (const float*)tensor.param + at;
      ms = tensor.moments + at;
      vs = ms + tensor.stride;
      owed = owed_at(tensor, at);
      plain = (const float*)tensor.plain + at;
    } else {
      read_grad(a, tensor.grad, at, length, copies[0]);
      read_grad(a, tensor.plain, at, length, copies[5]);
      read_param(a, tensor, at, length, copies[1]);
      read_moments(tensor, at, length, copies[2], copies[3]);
      read_row(FLOAT32, (const char*)owed_at(tensor, at), length, copies[4]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < V; i++) {
      vf g = load(grads + i * W), theta = load(params + i * W);
      theta = not_finite(theta) ? vf{} : square_safe(theta);
      vf m = load(ms + i * W), v = load(vs + i * W), o = square_safe(load(owed + i * W));
      bad |= not_finite(g);
      g = square_safe(g);
      const vf products[] = {g * g, v, m * m, g * m, theta * theta,
                             square_safe(load(plain + i * W)) * o, o * o};
#pragma GCC unroll 8
      for (int k = 0; k < DEFAULT_SUMS; k++) sums[k][i] += products[k];
    }
  }
  double* to = job.found + index * SURVEY;
  to[0] = any_lane(bad);
  for (int k = 0; k < DEFAULT_SUMS; k++) {
    to[1 + k] = 0;
    for (int i = 0; i < V; i++) to[1 + k] += lane_sum(sums[k][i]);
  }
}

inline void add_up_pieces(const DefaultSurvey& job) {
  for (long i = 0; i < job.a->count; i++)
    for (int k = 0; k < SURVEY; k++) {
      double sum = 0;
      for (long p = job.first[i]; p < job.first[i + 1]; p++) sum += job.found[p * SURVEY + k];
      job.a->survey[i * SURVEY + k] = (float)(k ? sum : sum > 0);
    }
}

inline int run_default_survey(const DefaultArguments* a) {
  long* first = (long*)malloc(sizeof(long) * (a->count + 1));
  if (!first) return 1;
  count_default_pieces(a, first);
  const long pieces = first[a->count];
  double* found = (double*)malloc(sizeof(double) * SURVEY * (pieces + 1));
  int failed = !found;
  if (!failed) {
    DefaultSurvey job = {a, first, found};
    Job work = {survey_piece, &job, pieces, 64};
    failed = run(work, default_threads(a, pieces));
    if (!failed) add_up_pieces(job);
  }
  free(found);
  free(first);
  return failed;
}

}  // namespace
