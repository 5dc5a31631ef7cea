// The kernels for one instruction set: compiled once for each, with its flags and
// -DTABLE=<name of the table that dispatch.cpp knows>.
#include "bptt.h"
#include "default_kept.h"
#include "default_runs.h"
#include "default_survey.h"
#include "default_update.h"
#include "finite.h"
#include "step.h"
#include "table.h"
#include "update.h"

namespace {

Shape shape_of(const LstmArguments* lstm) {
  return {lstm->layers, lstm->hidden, lstm->inputs, {1.0f / lstm->p, lstm->exp_p}};
}

int bptt(const LstmArguments* lstm, const BpttArguments* a) {
  Bptt job = {};
  job.shape = shape_of(lstm);
  job.leads = 1;
  job.steps = a->steps;
  job.coordinates = a->coordinates;
  job.grads = a->grads;
  job.state = a->state;
  job.cotangents = a->cotangents;
  job.last_state = a->last_state;
  job.scale = a->scale;
  return run_bptt(job, a->weights, a->weight_grads, a->threads);
}

int vjp(const LstmArguments* lstm, const VjpArguments* a) {
  Bptt job = {};
  job.shape = shape_of(lstm);
  job.leads = a->leads;
  job.steps = 1;
  job.coordinates = a->coordinates;
  job.grads = a->grads;
  job.state = a->state;
  job.cotangents = a->step_cotangents;
  job.state_cotangents = a->state_cotangents;
  job.grad_cotangents = a->grad_cotangents;
  job.first_state_cotangents = a->state_cotangents_before;
  job.scale = a->scale;
  return run_bptt(job, a->weights, a->weight_grads, a->threads);
}

int step(const LstmArguments* lstm, const StepArguments* a) {
  Step job = {shape_of(lstm), a->rules,   a->coordinates, a->grads_stride, a->weights_stride,
              a->grads,       a->weights, a->state,       a->out,          a->scale};
  return run_step(job, a->threads);
}

int update(const LstmArguments* lstm, const UpdateArguments* a) {
  return run_update(shape_of(lstm), a);
}

}  // namespace

extern const Table TABLE;
const Table TABLE = {W,
                     bptt,
                     vjp,
                     step,
                     update,
                     run_finite,
                     run_default_survey,
                     run_default_update,
                     run_default_kept,
                     run_default_runs};
