"""The inner loop: runs of one task, trained by a rule, as pure functions of tensors.

A `Carry` holds runs that differ only in tensors: leading dimensions `*lead` are `(R,)` for R runs
under one set of weights, or `(R, K)` for K perturbed sets of weights on each of R runs. The same
`advance` serves every caller: without grad (validation, evolution strategies, the first pass of
truncated backpropagation) and with it (second derivatives, references).

Time: `f_t` is the loss on the minibatch of step t. A carry at time t holds `theta_t` together with
`f_t(theta_t)` and its gradient, so that `advance` costs one evaluation: it applies the rule to the
gradient, then evaluates `f_{t+1}(theta_{t+1})`. The meta-loss of a window is then a function of
`f_1(theta_1), ..., f_T(theta_T)`, the paper's sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from learned_optim.meta_training import fused
from learned_optim.meta_training.by_part import Routing
from learned_optim.meta_training.layout import Layout
from learned_optim.meta_training.one_by_one import one_by_one
from learned_optim.rules import PARTS, ByLayer, Clock, Coordinates, State, UpdateRule, Weights
from learned_optim.tasks.base import Batch, Params, Split, Task


class Carry(NamedTuple):
    """Runs at time t.

    Attributes:
        theta: `theta_t`, `(*lead, N)`.
        grad: gradient of `f_t` at `theta_t`, likewise.
        loss: `f_t(theta_t)`, `(*lead)`.
        state: the rule's state; entries `(*lead, rows, N)` or, per tensor, `(*lead, rows, T)`.
        step: t, the number of updates made.
        batch: the minibatch of `f_t`.
    """

    theta: Tensor
    grad: Tensor
    loss: Tensor
    state: State
    step: int
    batch: Batch


class Runs:
    """R runs of one task: constants, minibatches, and the vectorised loss.

    Each run draws from a generator of its own, so a run is the same whatever runs beside it.

    Args:
        task: the common structure.
        seeds: one for each run.
        perturbations: K, or 0 without that dimension; the K share constants and minibatches
            (common random numbers).
        split: which data the minibatches come from.
        device: where everything lives; the generators stay on the CPU, so that a run is the
            same on every device.
    """

    def __init__(
        self,
        task: Task,
        seeds: Sequence[int],
        perturbations: int = 0,
        split: Split = "train",
        device: torch.device | str = "cpu",
    ) -> None:
        self.task = task
        self.split: Split = split
        self.perturbations = perturbations
        self.device = torch.device(device)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        starts = [task.init(generator) for generator in self.generators]
        self.initial = self._stack([params for params, _ in starts])
        self.constants = self._stack([constants for _, constants in starts])
        batched = torch.func.vmap if task.batched else one_by_one
        self._evaluate: Callable[[Params, Batch], tuple[Params, Tensor]] = batched(
            torch.func.grad_and_value(task.loss)
        )
        self._curve = batched(self._hessian_product)

    def _stack(self, items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {key: torch.stack([item[key] for item in items]).to(self.device) for key in items[0]}

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading dimensions."""
        runs = len(self.generators)
        return (runs, self.perturbations) if self.perturbations else (runs,)

    def start(self) -> Params:
        """The initial parameters, `(*lead, *shape)` each."""
        if not self.perturbations:
            return self.initial
        return {
            key: value.unsqueeze(1).expand(-1, self.perturbations, *value.shape[1:]).contiguous()
            for key, value in self.initial.items()
        }

    def next_batch(self) -> Batch:
        """The minibatch of the next step, `(R, ...)`, with the constants of each run."""
        batches = [self.task.batch(generator, self.split) for generator in self.generators]
        return self.constants | self._stack(batches)

    def _hessian_product(self, params: Params, batch: Batch, vector: Params) -> Params:
        gradient = torch.func.grad(self.task.loss)
        pull_back = torch.func.vjp(lambda point: gradient(point, batch), params)[1]
        return pull_back(vector)[0]

    def hessian_product(self, params: Params, batch: Batch, vector: Params) -> Params:
        """Each run's Hessian times `vector`, `(R, *shape)` each; not for perturbed weights."""
        return self._curve(params, batch, vector)

    def evaluate(self, params: Params, batch: Batch) -> tuple[Params, Tensor]:
        """Gradients `(*lead, *shape)` and losses `(*lead)`."""
        if not self.perturbations:
            return self._evaluate(params, batch)
        # A vmap within a vmap would spare the copies of the minibatch, and costs a quarter more.
        grads, loss = self._evaluate(
            {key: value.flatten(0, 1) for key, value in params.items()},
            {key: value.repeat_interleave(self.perturbations, 0) for key, value in batch.items()},
        )
        grads = {key: value.unflatten(0, self.lead) for key, value in grads.items()}
        return grads, loss.unflatten(0, self.lead)


def begin(rule: UpdateRule, runs: Runs) -> tuple[Layout, Carry]:
    """The carry at time 0: initial parameters, first loss and gradient, zero state."""
    params = runs.start()
    layout = Layout(rule, params, len(runs.lead))
    batch = runs.next_batch()
    grads, loss = runs.evaluate(params, batch)
    theta = layout.join(params)
    state = initial_state(rule, theta, layout)
    return layout, Carry(theta, layout.join(grads), loss, state, 0, batch)


def initial_state(rule: UpdateRule, theta: Tensor, layout: Layout) -> State:
    """Zeros in the compute dtype, for every run, as `rule.init_state` has them for a tensor."""
    columns = {"coordinate": theta.shape[-1], "tensor": len(layout.sizes)}
    state = {
        key: theta.new_zeros((*theta.shape[:-1], spec.rows, columns[spec.per]))
        for key, spec in rule.state_spec.items()
    }
    return state | layout.initial_bases(rule, theta)


def apply_rule(
    rule: UpdateRule,
    weights: Weights,
    layout: Layout,
    coords: Coordinates,
    state: State,
    clock: Clock,
    *,
    consume: bool = False,
) -> tuple[Tensor, State]:
    """All stages of the rule: the step `(*lead, N)` and the new state.

    With `consume`, the old state may be overwritten, where no graph is recorded.
    """
    if isinstance(rule, ByLayer):
        return _apply_parts(rule, weights, layout, coords, state, clock)
    grad, state, found = layout.see(rule, coords.grad, state, clock)
    coords = coords._replace(grad=grad, plain=coords.grad)
    compiled = fused.move(
        rule, weights, coords, state, clock, layout.facts, layout.sizes, consume=consume
    )
    if compiled is not None:
        step, signals, state = compiled
        return layout.settle(rule, step, signals, state | found)
    per_tensor = {key: state[key] for key in rule.keys_per("tensor")}
    per_coordinate = {key: state[key] for key in rule.keys_per("coordinate")}
    sums = layout.summarize(rule, coords, per_coordinate)
    signals, per_tensor = rule.control(sums, layout.facts, per_tensor, clock, weights)
    step, per_coordinate = rule.update(coords, per_coordinate, layout.spread(signals), weights)
    return layout.settle(rule, step, signals, per_tensor | per_coordinate | found)


def _apply_parts(
    rule: ByLayer,
    weights: Weights,
    layout: Layout,
    coords: Coordinates,
    state: State,
    clock: Clock,
) -> tuple[Tensor, State]:
    """`apply_rule`, each part on its own coordinates."""
    routing, sets = Routing(rule, layout.shapes, layout.sizes), rule.split(weights)
    moved = {
        part: apply_rule(
            rule.part,
            sets[part],
            layout,
            Coordinates(
                routing.take(coords.grad, part),
                routing.take(coords.param, part),
                None if coords.widths is None else routing.take(coords.widths, part),
            ),
            {key: routing.take(value, part) for key, value in state.items()},
            clock,
        )
        for part in PARTS
    }
    steps = {part: step for part, (step, _) in moved.items()}
    cells = {part: new["cell"] for part, (_, new) in moved.items()}
    return routing.put(steps), {"cell": routing.put(cells)}


def advance(
    rule: UpdateRule,
    weights: Weights,
    runs: Runs,
    layout: Layout,
    carry: Carry,
    total_steps: int | None = None,
    *,
    second_derivatives: bool = False,
    consume: bool = False,
) -> Carry:
    """One inner step: the rule's update, then the loss and gradient on the next minibatch.

    Differentiable in `weights`, through parameters and state; with `second_derivatives` also
    through what the rule sees of them, gradients above all (the paper drops that term).

    With `consume`, the old carry is used up: its state may be overwritten. For callers that look
    at no carry but the last, and record no graph.
    """
    clock = make_clock(carry.step + 1, total_steps, layout, carry.loss)
    coords = Coordinates(carry.grad, carry.theta)
    if not second_derivatives:
        coords = Coordinates(carry.grad.detach(), carry.theta.detach())
    step, state = apply_rule(rule, weights, layout, coords, carry.state, clock, consume=consume)
    return arrive(runs, layout, carry, step, state)


def arrive(runs: Runs, layout: Layout, carry: Carry, step: Tensor, state: State) -> Carry:
    """The carry after a step `(*lead, N)`: moved, and evaluated on the next minibatch."""
    theta = carry.theta + step
    batch = runs.next_batch()
    grads, loss = runs.evaluate(layout.split(theta), batch)
    return Carry(theta, layout.join(grads), loss, state, carry.step + 1, batch)


def make_clock(step: int, total_steps: int | None, layout: Layout, like: Tensor) -> Clock:
    """The clock of update number `step`, the same for all tensors."""
    tensors = (len(layout.sizes),)
    total = None if total_steps is None else like.new_full(tensors, float(total_steps))
    return Clock(like.new_full(tensors, float(step)), total)
