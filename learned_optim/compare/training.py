"""One run of one contender on the user's problem."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from learned_optim.factory import Factory, FactoryError, Problem, build, take_loss, users
from learned_optim.optimizer import LearnedOptimizer

# Points of a curve; the last is the mean over the last twentieth of the steps.
POINTS = 20


@dataclass(frozen=True)
class Contender:
    """An optimizer with its settings.

    Attributes:
        name: in the table.
        make: called with the parameters.
        anneal: let a cosine take the learning rate to zero over the run.
        averaged: evaluate within `LearnedOptimizer.averaged`.
    """

    name: str
    make: Callable[[Iterable[nn.Parameter]], Optimizer]
    anneal: bool = False
    averaged: bool = False

    def shown(self, optimizer: Optimizer) -> AbstractContextManager[None]:
        """Where the parameters are what is evaluated."""
        if self.averaged and isinstance(optimizer, LearnedOptimizer):
            return optimizer.averaged()
        return nullcontext()


@dataclass
class Run:
    """What one run recorded.

    Attributes:
        curve: at each of `points(steps)`: `evaluate`'s value, or the mean training loss since the
            point before. Infinite from where the run diverged.
        seconds: of the training, evaluations left out.
    """

    curve: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def final(self) -> float:
        """The last value of the curve."""
        return self.curve[-1]


def points(steps: int) -> list[int]:
    """The numbers of steps after which a curve has a value; the last is `steps`."""
    count = min(POINTS, steps)
    return [round(steps * (index + 1) / count) for index in range(count)]


def train(
    factory: Factory,
    contender: Contender,
    steps: int,
    seed: int,
    tick: Callable[[int], object] = lambda steps: None,
) -> Run:
    """Build the problem and train it; a run that is no longer finite ends there.

    Args:
        factory: the user's.
        contender: the optimizer.
        steps: updates.
        seed: what everything random is seeded with.
        tick: called with the number of steps done since its last call.

    Returns:
        What was recorded.

    Raises:
        FactoryError: the factory or its functions return something else than agreed.
    """
    problem = build(factory, seed)
    optimizer = contender.make(problem.parameters)
    schedule = lr_scheduler.CosineAnnealingLR(optimizer, steps) if contender.anneal else None
    run, done = Run(), 0
    for until in points(steps):
        value = math.inf
        if not run.curve or math.isfinite(run.final):
            start = time.perf_counter()
            value = _advance(problem, optimizer, schedule, until - done)
            run.seconds += time.perf_counter() - start
            if problem.evaluate is not None and math.isfinite(value):
                with contender.shown(optimizer):
                    value = _evaluated(problem.evaluate)
        run.curve.append(value if math.isfinite(value) else math.inf)
        tick(until - done)
        done = until
    return run


def _advance(
    problem: Problem,
    optimizer: Optimizer,
    schedule: lr_scheduler.LRScheduler | None,
    steps: int,
) -> float:
    """Take some steps; the mean of their losses."""
    total: float | Tensor = 0.0
    for _ in range(steps):
        optimizer.zero_grad()
        loss = take_loss(problem)
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        # Read only at the end: on a device every look makes the host wait.
        total = total + loss.detach().float().reshape(())
    return float(total) / steps


def _evaluated(evaluate: Callable[[], float | Tensor]) -> float:
    with torch.no_grad(), users("evaluate()"):
        value = evaluate()
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError) as error:
        raise FactoryError(f"evaluate() must return a number but: {error}") from None
