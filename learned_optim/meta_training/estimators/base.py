"""The contract of a meta-gradient estimator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from learned_optim.meta_training.meta_loss import MetaLoss
from learned_optim.meta_training.seeding import generator
from learned_optim.meta_training.truncation import Worker
from learned_optim.rules import UpdateRule, Weights


@dataclass
class Estimate:
    """What a worker contributes to one outer step.

    Attributes:
        grads: estimate of the gradient of the meta-loss, averaged over the worker's runs.
        meta_loss: the meta-loss of the window, averaged likewise.
        inner_steps: inner steps made, all runs and perturbations counted.
        coordinate_steps: the same times the coordinates of the optimizee.
        non_finite: runs (both members of a pair count) whose window held a non-finite loss or had
            a non-finite meta-loss.
    """

    grads: Weights
    meta_loss: float
    inner_steps: int
    coordinate_steps: int
    non_finite: int = 0
    stats: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GradientEstimator(ABC):
    """Estimates the gradient of the meta-loss with respect to the meta-parameters.

    An estimator knows nothing of tasks: it moves a `Worker` on by one window. What it keeps
    between windows lives in `worker.extra`, so that it is checkpointed with the worker.

    Args:
        unroll: inner steps of a window.
    """

    name: ClassVar[str]

    unroll: int = 20

    def check(self, rule: UpdateRule) -> None:
        """Refuse a rule that can not be trained so, before hours are spent; all can by default.

        Raises:
            ValueError: naming the field and its value.
        """
        return

    @abstractmethod
    def estimate(
        self, rule: UpdateRule, weights: Weights, worker: Worker, meta_loss: MetaLoss
    ) -> Estimate:
        """Advance the worker by one window and estimate its meta-gradient."""


def told_horizon(worker: Worker, share: float) -> int | None:
    """The episode's length if the rule is told it, as it is in a share of all episodes."""
    rng = generator("told", worker.seed, worker.index, worker.episode)
    return worker.total_steps if torch.rand((), generator=rng) < share else None


def check_only(beginnings: tuple[str, ...], rule: UpdateRule) -> None:
    """Refuse an `only` of which an entry names nothing: a misspelt one would not be trained.

    Raises:
        ValueError: naming it, and what there is.
    """
    names = list(rule.weight_shapes())
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in names):
            raise ValueError(
                f"estimator.only has {beginning!r}, with which no meta-parameter of {rule.name} "
                f"begins: correct it or leave it out; there are {', '.join(names)}"
            )


def only_those(values: Weights, beginnings: tuple[str, ...]) -> Weights:
    """Zero where a name begins with none of `beginnings`; all of them as they are without any.

    Raises:
        ValueError: if no name begins with any of them.
    """
    if not beginnings:
        return values
    chosen = [key for key in values if key.startswith(beginnings)]
    if not chosen:
        raise ValueError(f"no meta-parameter begins with any of {beginnings}: {list(values)}")
    return {k: v if k in chosen else torch.zeros_like(v) for k, v in values.items()}
