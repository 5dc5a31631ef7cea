// The kernels for one instruction set: compiled once for each, with its flags and
// -DTABLE=<name of the table that dispatch.cpp knows>.
#include "bases.h"
#include "bptt.h"
#include "default_kept.h"
#include "default_runs.h"
#include "default_survey.h"
#include "default_update.h"
#include "finite.h"
#include "large_steps.h"
#include "step.h"
#include "straighten.h"
#include "table.h"
#include "take.h"
#include "update.h"

namespace {

Shape shape_of(const CellsArguments* cells) {
  return {cells->cell, cells->layers, cells->hidden, cells->inputs, {1.0f / cells->p, cells->exp_p}};
}

int bptt(const CellsArguments* cells, const BpttArguments* a) {
  Bptt job = {};
  job.shape = shape_of(cells);
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

int vjp(const CellsArguments* cells, const VjpArguments* a) {
  Bptt job = {};
  job.shape = shape_of(cells);
  job.leads = a->leads;
  job.steps = 1;
  job.coordinates = a->coordinates;
  job.grads = a->grads;
  job.state = a->state;
  job.cotangents = a->step_cotangents;
  job.state_cotangents = a->state_cotangents;
  job.grad_cotangents = a->grad_cotangents;
  job.first_state_cotangents = a->state_cotangents_before;
  job.widths = a->widths;
  job.scale = a->scale;
  return run_bptt(job, a->weights, a->weight_grads, a->threads);
}

int step(const CellsArguments* cells, const StepArguments* a) {
  Step job = {shape_of(cells), a->rules,   a->coordinates, a->grads_stride, a->weights_stride,
              a->grads,       a->weights, a->state,       a->out,          a->scale};
  return run_step(job, a->threads);
}

int update(const CellsArguments* cells, const UpdateArguments* a) {
  return run_update(shape_of(cells), a);
}

}  // namespace

extern const Table TABLE;
const Table TABLE = {W,
                     bptt,
                     vjp,
                     step,
                     update,
                     run_finite,
                     run_take,
                     run_see,
                     run_unsee,
                     run_straighten,
                     run_normalize,
                     run_finish,
                     run_default_survey,
                     run_default_update,
                     run_default_kept,
                     run_default_runs};
