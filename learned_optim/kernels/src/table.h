// The C interface: structs that Python fills through ctypes (same order, same types there).
#pragma once
#include <stdint.h>

// Stacked cells of a `CellKind`; bptt and vjp know LSTMs alone.
struct CellsArguments {
  int32_t cell, layers, hidden, inputs;
  float p, exp_p;  // of the features when inputs == 2
};

struct BpttArguments {
  int64_t steps, coordinates;
  const float *grads, *state, *cotangents, *weights;
  float *last_state, *weight_grads;
  float scale;
  int32_t threads;
};

struct VjpArguments {
  int64_t leads, coordinates;
  const float *grads, *state, *step_cotangents, *state_cotangents, *weights;
  const float* widths;  // of the smoothed features, or null
  float *weight_grads, *grad_cotangents, *state_cotangents_before;
  float scale;
  int32_t threads;
};

struct StepArguments {
  int64_t rules, coordinates, grads_stride, weights_stride;
  const float *grads, *weights;
  float *state, *out;
  float scale;
  int32_t threads;
};

enum Type { FLOAT32, BFLOAT16, FLOAT16 };

// Contiguous memory of one parameter tensor; the state is (S, count).
struct UpdateTensor {
  const void* grad;
  void *param, *state;
  int64_t count;
};

// param <- keep * param + lr * scale * output, where the step is finite.
struct UpdateArguments {
  int64_t count;
  const UpdateTensor* tensors;
  const float* weights;
  float scale, lr, keep;
  int32_t maximize, param_type, grad_type, state_type, threads;
};

// broken[i] <- whether tensor i, of sizes[i] numbers, holds NaN or infinity.
struct FiniteArguments {
  int64_t count;
  const void* const* tensors;
  const int64_t* sizes;
  uint8_t* broken;
  int32_t type, threads;
};

// param <- keep * param + lr * taken, where `taken` of the step and the new `owed` are `deferral`'s.
struct TakeArguments {
  int64_t count;
  const float* step;
  void* param;
  float* owed;
  float lr, keep, share, due;
  int32_t param_type, threads;
};

// A matrix, rows x columns, and its bases (`bases.Basis`): what is seen of the gradient goes to `seen`.
// At a `turn` (1; 2: a firm one) the bases turn, and the momentum, which is seen in them.
struct BasisTensor {
  const void* grad;
  float *seen, *left, *right, *spread, *momentum;
  int64_t rows, columns, grad_type, turn;
};

struct SeeArguments {
  int64_t count;
  const BasisTensor* tensors;
  float memory, ridge;
  int32_t threads;
};

// The whole step of a matrix, written over, and its bases where it has any.
struct MatrixStep {
  float *step, *left, *right;
  void* param;
  float* owed;
  int64_t rows, columns;
};

// As `TakeArguments` says, of steps out of their bases; `terms`: share and due of each.
struct UnseeArguments {
  int64_t count;
  const MatrixStep* tensors;
  const float* terms;
  float lr, keep;
  int32_t param_type, threads;
};

struct StraightenTerms {
  float length, blend, gain, share, due;  // as in `Signals`
};

// The same of steps that are orthogonalised in part; three numbers for each of the iterations.
struct StraightenArguments {
  int64_t count, iterations;
  const MatrixStep* tensors;
  const StraightenTerms* terms;
  const float* quintics;
  float lr, keep;
  int32_t param_type, threads;
};

// to <- numbers / norm, of float32 or bfloat16.
struct NormalizeArguments {
  int64_t count;
  const float* numbers;
  void* to;
  double* norm;
  int32_t type, threads;
};

// As `TakeArguments` says, of the step mixed with `size` times what is straight, of float32 or bfloat16;
// nothing where a number of the mixture is not finite.
struct FinishArguments {
  int64_t count;
  const float* step;
  const void* straight;
  void* param;
  float* owed;
  float blend, size, share, due, lr, keep;
  int32_t straight_type, param_type, threads;
};

// Numbers that are counted up by 1.
struct CountArguments {
  int64_t count;
  float* const* numbers;
};

// One parameter tensor under the rule `default`: (3, count) moments, (2 H, count) cell, whose rows
// lie `stride` numbers apart. The whole step goes to `out`; where that is null, `param` is moved by
// what is due now, and the third row of the moments with it.
struct DefaultTensor {
  const void *grad, *plain;  // as the rule sees it, and in no basis; one where it has none
  void* param;
  float* moments;
  void* cell;
  float* out;
  int64_t count, stride;
};

// The coordinates of the rule `default`. Tensors share `rules` sets of weights, one set for each
// count / rules tensors in a row. Signals are (rules, M, count / rules). With `guard`, a coordinate
// whose step is not finite keeps parameter and state.
struct DefaultArguments {
  int64_t count, rules, weights_stride;
  const DefaultTensor* tensors;
  const float *weights, *signals;  // of the coordinates' LSTM and head
  float* survey;                   // (count, 8): is the gradient not finite, then the rule's sums
  float lr, keep;
  int32_t hidden, maximize, guard, param_type, grad_type, cell_type, threads;
};

// What the rule `default` does once a tensor: from surveys (rules, tensors, 8), facts (5, tensors),
// steps and horizons (tensors; null: unknown) to signals (rules, M, tensors); gauge
// (rules, 5, tensors) and cell (rules, 2 * units, tensors) in place.
struct DefaultControlArguments {
  int64_t rules, tensors;
  const float *weights, *facts, *step, *total;  // all of the rule's weights, flat
  float *survey, *gauge, *cell, *signals;
  int32_t units, hidden;
};

// What each tensor of an optimizer keeps under the rule `default`, in place of `step`, `gauge` and
// `cell` above: the number of its steps, its (6) of the gauge, the controller's (2 * units).
// Where `finite` (null: everywhere) is 0, a tensor's stay as they are.
struct DefaultKeptArguments {
  float *const *steps, *const *gauges, *const *cells;
  const uint8_t* finite;
};

// A step of `rules` sets of weights, each with tensors of these sizes side by side: (rules, N)
// gradients, parameters and steps, (rules, 3, N) moments, (rules, 2 H, N) cell, all float32.
struct DefaultRunsArguments {
  const int64_t* sizes;
  const float *grads, *plain, *params;
  float *moments, *cell, *steps;
  int64_t coordinates;
  int32_t threads;
};

// One table per instruction set. Functions return 0, or 1 when memory ran out.
struct Table {
  int32_t lanes;
  int (*bptt)(const CellsArguments*, const BpttArguments*);
  int (*vjp)(const CellsArguments*, const VjpArguments*);
  int (*step)(const CellsArguments*, const StepArguments*);
  int (*update)(const CellsArguments*, const UpdateArguments*);
  int (*finite)(const FiniteArguments*);
  int (*take)(const TakeArguments*);
  int (*see)(const SeeArguments*);
  int (*unsee)(const UnseeArguments*);
  int (*straighten)(const StraightenArguments*);
  int (*normalize)(const NormalizeArguments*);
  int (*finish)(const FinishArguments*);
  int (*default_survey)(const DefaultArguments*);
  int (*default_update)(const DefaultArguments*);
  int (*default_control)(const DefaultControlArguments*, const DefaultKeptArguments*);
  int (*default_runs)(const DefaultControlArguments*, const DefaultRunsArguments*);
};
