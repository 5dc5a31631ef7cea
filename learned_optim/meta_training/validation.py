"""Validation on fixed optimizees, none of which meta-training ever sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from learned_optim.meta_training.baseline import loss_curve, tail_mean, tuned_adam
from learned_optim.meta_training.recipe import TaskEntry, Validation
from learned_optim.meta_training.seeding import derive_seed, generator
from learned_optim.meta_training.unroll import Runs
from learned_optim.rules import UpdateRule, Weights
from learned_optim.tasks.base import Task

CAP = 10.0  # a log ratio counts at most this much either way: one solved task must not decide
FLOOR = 1e-12


class Result(NamedTuple):
    """Of one family at one length.

    Attributes:
        family: index of the task entry.
        steps: inner steps.
        curve: `(steps + 1, runs)`.
        value: what it adds to the score; infinite where a loss of the tail is not finite, or has
            no logarithm that the score asks for.
    """

    family: int
    steps: int
    curve: Tensor
    value: float


class Validator:
    """The same optimizees at every call, so that two scores differ by the weights alone."""

    def __init__(
        self,
        tasks: Sequence[TaskEntry],
        config: Validation,
        device: torch.device | str = "cpu",
    ) -> None:
        self.tasks, self.config, self.device = tasks, config, torch.device(device)
        self._adam: dict[tuple[int, int], Tensor] = {}

    def cells(self) -> list[tuple[int, int]]:
        """`(family, steps)` of each result."""
        horizons = self.config.horizons()
        return [(family, steps) for family in range(len(self.tasks)) for steps in horizons]

    def evaluate(self, rule: UpdateRule, weights: Weights, family: int, steps: int) -> Result:
        """One family at one length."""
        told = steps if self.config.tell_horizon else None
        runs = Runs(*self._optimizees(family), device=self.device)
        curve = loss_curve(rule, weights, runs, steps, told).cpu()
        final = tail_mean(curve, self.config.tail)
        value = final.mean()
        if self.config.score == "log_adam":
            value = self._log_ratio(final, family, steps)
        finite = bool(final.isfinite().all() & value.isfinite())
        return Result(family, steps, curve, float(value) if finite else math.inf)

    def score(self, results: Sequence[Result]) -> float:
        """Mean over families and lengths, and `worst` times the maximum; infinite, never NaN."""
        values = [result.value for result in results]
        mean, worst = sum(values) / len(values), self.config.worst
        return mean + worst * max(values) if worst else mean  # 0 times infinity is NaN

    def _optimizees(self, family: int) -> tuple[Task, list[int]]:
        # The seed is no recipe's: every run of meta-training is judged on the same optimizees.
        path = ("validation", family)
        task = self.tasks[family].family.sample(generator(*path))
        return task, [derive_seed(*path, run) for run in range(self.config.runs)]

    def _log_ratio(self, final: Tensor, family: int, steps: int) -> Tensor:
        if (family, steps) not in self._adam:
            task, seeds = self._optimizees(family)
            best, _ = tuned_adam(task, seeds, steps, self.config.tail, device=self.device)
            self._adam[family, steps] = best.cpu()
        ratio = (final + FLOOR).log() - (self._adam[family, steps] + FLOOR).log()
        return ratio.clamp(-CAP, CAP).mean()
