"""Truncated backpropagation through time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.meta_training import fused
from learned_optim.meta_training.adjoint import window_gradient
from learned_optim.meta_training.estimators.base import (
    Estimate,
    GradientEstimator,
    check_only,
    only_those,
    told_horizon,
)
from learned_optim.meta_training.layout import Layout
from learned_optim.meta_training.meta_loss import MetaLoss
from learned_optim.meta_training.replay import Recording, cotangents, replay, sampled
from learned_optim.meta_training.seeding import generator
from learned_optim.meta_training.tape import Tape, fits
from learned_optim.meta_training.truncation import Worker
from learned_optim.meta_training.unroll import Carry, advance, arrive
from learned_optim.rules import UpdateRule, Weights


@dataclass(frozen=True)
class TBPTT(GradientEstimator):
    """Backpropagation through windows of `unroll` steps, the paper's estimator.

    Biased: parameters and state are constants at the start of each window. Without
    `second_derivatives` the gradient of the optimizee's gradients is dropped too, as in the paper
    (section 2.1, figure 2), along with that of every other function of the parameters that the
    rule sees; the rule alone is then differentiated, from its graph (`learned_optim.meta_training.
    tape`) or, where a kernel does it or the graph is too large, in a second pass (`replay`).

    Args:
        unroll: steps of a window; the last window of an episode is shorter where it must be.
        second_derivatives: differentiate through the optimizee's gradients, by the reverse sweep of
            `learned_optim.meta_training.adjoint`.
        tell_horizon: probability that the rule is told the length of the episode (drawn once an
            episode).
        sample: coordinates of each tensor whose steps are differentiated, drawn anew for every
            window; 0 takes all. Unbiased, and as much cheaper as there are fewer: the steps of a
            coordinatewise rule depend on the meta-parameters each by itself.
        smoothing: with second derivatives, how far the features are smoothed on the way back, in
            units of each gradient's root mean square over the window; 0 for their own derivative.
            See `learned_optim.meta_training.adjoint`, which says why whole episodes need it.
        limit: with second derivatives, of the norm of each run's adjoint times that of its
            parameters; 0 for none. See `learned_optim.meta_training.adjoint`.
        only: beginnings of the names of the meta-parameters that are trained; all, if empty.
    """

    name: ClassVar[str] = "tbptt"

    unroll: int = 20
    second_derivatives: bool = False
    tell_horizon: float = 0.0
    sample: int = 0
    smoothing: float = 0.0
    limit: float = 0.0
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "only", tuple(self.only))
        if self.unroll < 1 or not 0 <= self.tell_horizon <= 1:
            raise ValueError(f"unroll >= 1 and tell_horizon in [0, 1] expected but got {self}")
        if self.sample < 0 or (self.sample and self.second_derivatives):
            raise ValueError(
                "sample must be 0 or more, and 0 with second_derivatives, which tie the "
                f"coordinates together, but is {self.sample}"
            )
        if not 0 <= self.smoothing <= 10 or (self.smoothing and not self.second_derivatives):
            raise ValueError(
                "smoothing must be in [0, 10], and 0 without second_derivatives, which alone see "
                f"the features' derivative, but is {self.smoothing}"
            )

        if self.limit < 0 or (self.limit and not self.second_derivatives):
            raise ValueError(
                "limit must be 0 or more, and 0 without second_derivatives, which alone have an "
                f"adjoint that can grow, but is {self.limit}"
            )

    def check(self, rule: UpdateRule) -> None:
        """See `GradientEstimator`."""
        check_only(self.only, rule)
        if self.sample and not rule.coordinatewise:
            raise ValueError(
                f"estimator.sample = {self.sample} is for coordinatewise rules, which {rule.name} "
                "is not: leave it out, or use another rule"
            )

    def estimate(
        self, rule: UpdateRule, weights: Weights, worker: Worker, meta_loss: MetaLoss
    ) -> Estimate:
        """See `GradientEstimator`. A non-finite loss or meta-loss ends the episode."""
        start = worker.current(rule).step
        length = min(self.unroll, worker.stop_at - start)
        grads, losses, distance = self._window(rule, weights, worker, meta_loss, length)
        values = meta_loss(losses / worker.unit(losses))
        finite = torch.isfinite(losses).all(0) & values.isfinite()
        healthy = bool(finite.all()) and all(bool(g.isfinite().all()) for g in grads.values())
        if not healthy:
            worker.abandon()
            grads = {key: torch.zeros_like(value) for key, value in weights.items()}
        return Estimate(
            grads=grads,
            meta_loss=float(values.mean()),
            inner_steps=losses.numel(),
            coordinate_steps=losses.numel() * worker.layout.coordinates,
            non_finite=0 if healthy else max(1, int((~finite).sum())),
            stats={"last_loss": float(losses[-1].mean())} | distance,
        )

    @torch.no_grad()
    def _window(
        self, rule: UpdateRule, weights: Weights, worker: Worker, meta_loss: MetaLoss, length: int
    ) -> tuple[Weights, Tensor, dict[str, float]]:
        """The meta-gradient, the losses, and the mean gap to a teacher if there is one."""
        start = worker.current(rule)
        told = told_horizon(worker, self.tell_horizon)
        tape = None
        if not self.second_derivatives and not self.sample and tape_pays(rule, start, length):
            tape = Tape(rule, weights, worker.layout, start, told)
        carries = _forward(rule, weights, worker, length, told, tape)
        distance, pulls = _imitate(worker, carries, told)
        worker.carry = carries[-1]
        losses = torch.stack([carry.loss for carry in carries[1:]])
        unit = worker.unit(losses)
        step_weights = meta_loss.step_weights(losses / unit) / (unit * losses[0].numel())
        if self.second_derivatives:
            gradient = window_gradient(
                rule,
                weights,
                worker.runs,
                worker.layout,
                carries,
                step_weights,
                told,
                pulls,
                smoothing=self.smoothing,
                limit=self.limit / losses[0].numel(),
            )
        else:
            wanted = cotangents(step_weights, torch.stack([carry.grad for carry in carries[1:]]))
            wanted = wanted if pulls is None else wanted + pulls
            if tape is not None:
                gradient = tape.gradient(wanted)
            else:
                recording = _record(worker.layout, carries, wanted, told)
                if self.sample:
                    path = (worker.seed, worker.index, worker.episode, start.step)
                    recording = sampled(rule, recording, self.sample, generator("sample", *path))
                gradient = replay(rule, weights, recording)
        return only_those(gradient, self.only), losses, distance


def tape_pays(rule: UpdateRule, start: Carry, length: int) -> bool:
    """Whether recording the window beats running it and replaying it by a kernel."""
    return not fused.applies(rule, start.grad) and fits(rule, start, length)


def _forward(
    rule: UpdateRule,
    weights: Weights,
    worker: Worker,
    length: int,
    told: int | None,
    tape: Tape | None,
) -> list[Carry]:
    """The carries of times 0 ... length; with a tape those between have no state."""
    carries = [worker.current(rule)]
    for _ in range(length):
        if tape is None:
            carry = advance(rule, weights, worker.runs, worker.layout, carries[-1], told)
        else:
            step = tape.step(carries[-1])
            carry = arrive(worker.runs, worker.layout, carries[-1], step, {})
        carries.append(carry)
    if tape is not None:
        carries[-1] = carries[-1]._replace(state=tape.state())
    return carries


def _record(
    layout: Layout, carries: Sequence[Carry], wanted: Tensor, told: int | None
) -> Recording:
    return Recording(
        grads=torch.stack([carry.grad for carry in carries[:-1]]),
        params=torch.stack([carry.theta for carry in carries[:-1]]),
        cotangents=wanted,
        state=carries[0].state,
        layout=layout,
        first_step=carries[0].step + 1,
        total_steps=told,
    )


def _imitate(
    worker: Worker, carries: Sequence[Carry], told: int | None
) -> tuple[dict[str, float], Tensor | None]:
    """The mean gap to the worker's teacher, and its gradient at each step, `(T, *lead, N)`."""
    lesson = worker.lesson()
    if lesson is None:
        return {}, None
    targets = torch.stack([lesson.target(carry, told) for carry in carries[:-1]])
    worker.taught(lesson)
    thetas = torch.stack([carry.theta for carry in carries])
    steps = thetas.diff(dim=0)
    gaps = lesson.gap(steps, targets)
    pulls = lesson.gap_gradient(steps, targets) * (worker.pull / gaps.numel())
    return {"imitation": float(gaps.mean())}, pulls
