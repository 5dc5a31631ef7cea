"""Episodes: which task, how long, and how it is cut into windows.

A `Worker` is one stream of episodes of one task family. Its random choices are functions of
`(seed, worker, episode)`, so a worker in flight is restored from the episode's number, the
generators of its runs, and its tensors.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from learned_optim.meta_training.constraint import Constraint, free
from learned_optim.meta_training.imitation import Lesson, Teacher
from learned_optim.meta_training.layout import Layout
from learned_optim.meta_training.seeding import derive_seed, generator
from learned_optim.meta_training.unroll import Carry, Runs, begin
from learned_optim.meta_training.yardstick import Yardstick
from learned_optim.rules import UpdateRule
from learned_optim.tasks.base import TaskFamily


@dataclass(frozen=True)
class Horizon(ABC):
    """A distribution over the number of inner steps of an episode."""

    name: ClassVar[str]

    @abstractmethod
    def sample(self, rng: torch.Generator) -> int:
        """Draw a number of steps."""


@dataclass(frozen=True)
class Constant(Horizon):
    """Always `steps`."""

    name: ClassVar[str] = "constant"

    steps: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1 but is {self.steps}")

    def sample(self, rng: torch.Generator) -> int:
        """See `Horizon`."""
        return self.steps


@dataclass(frozen=True)
class LogUniform(Horizon):
    """Log-uniform on `[low, high]`, rounded: short and long episodes at every scale."""

    name: ClassVar[str] = "log_uniform"

    low: int = 100
    high: int = 1000

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ValueError(f"need 1 <= low <= high but low={self.low}, high={self.high}")

    def sample(self, rng: torch.Generator) -> int:
        """See `Horizon`."""
        u = torch.rand((), generator=rng).item()
        return round(math.exp(math.log(self.low) + u * math.log(self.high / self.low)))


@dataclass(frozen=True)
class HeavyTailed(Horizon):
    """Pareto with least value `low`, cut at `high`: mostly short, now and then very long.

    P(steps > x) = (low / x)^tail. Wichrowska et al. 2017, section 4.4, train on such horizons so
    that a rule does not learn where training ends.
    """

    name: ClassVar[str] = "heavy_tailed"

    low: int = 50
    high: int = 5000
    tail: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high or self.tail <= 0:
            raise ValueError(f"need 1 <= low <= high and tail > 0 but got {self}")

    def sample(self, rng: torch.Generator) -> int:
        """See `Horizon`."""
        left = 1 - torch.rand((), generator=rng).item()
        if -math.log(left) >= self.tail * math.log(self.high / self.low):
            return self.high  # here the power may overflow
        return round(self.low * left ** (-1 / self.tail))


HORIZONS: dict[str, type[Horizon]] = {
    horizon.name: horizon for horizon in (Constant, LogUniform, HeavyTailed)
}


class Worker:
    """A stream of episodes: R runs of one task at a time, R fresh ones when they end.

    Args:
        family: where tasks come from.
        runs: R.
        horizon: how long an episode lasts.
        seed: of the whole meta-training run.
        index: this worker's number.
        stagger: cut the first episode at a random step, so that the workers' windows lie at all
            ages of an episode from then on (and not all at the same one).
        device: where the tensors live.
        yardstick: measures the losses; tasks are then drawn from its finite pool.
        by_start: measure the losses by the run's first one.

    Attributes:
        growth: factor on the horizon of the episodes to come.
        teacher: whom the rule imitates, None for nobody.
        pull: strength of the imitation; 0 does without.
        allowed: the constraint, which takes perturbations to where the meta-parameters may be.
    """

    def __init__(
        self,
        family: TaskFamily,
        runs: int,
        horizon: Horizon,
        seed: int,
        index: int,
        *,
        stagger: bool = False,
        device: torch.device | str = "cpu",
        yardstick: Yardstick | None = None,
        by_start: bool = False,
    ) -> None:
        self.family, self.n_runs, self.horizon = family, runs, horizon
        self.seed, self.index, self.stagger, self.device = seed, index, stagger, device
        self.yardstick, self.by_start = yardstick, by_start
        self.growth = 1.0
        self.teacher: Teacher | None = None
        self.pull = 0.0
        self.allowed: Constraint = free
        self.episode = -1
        self.extra: dict[str, Any] = {}
        self.runs: Runs
        self.layout: Layout
        self.carry: Carry | None = None
        self.total_steps = 0
        self.stop_at = 0
        self._units: Tensor | None = None  # of the losses, `(steps + 1, R)`

    def _draw_episode(self, perturbations: int, units: Tensor | None = None) -> None:
        path = ("episode", self.seed, self.index, self.episode)
        drawn: tuple[int | str, ...] = path
        if self.yardstick is not None:
            choice = derive_seed(*path, "pool") % self.yardstick.config.pool
            drawn = ("pool", self.seed, choice)
        task = self.family.sample(generator(*drawn, "task"))
        rng = generator(*path, "horizon")
        self._growth_in_flight = self.growth
        self.total_steps = max(1, round(self.growth * self.horizon.sample(rng)))
        self.stop_at = self.total_steps
        if self.stagger and self.episode == 0:
            self.stop_at = int(torch.randint(1, self.total_steps + 1, (), generator=rng))
        seeds = [derive_seed(*drawn, "run", run) for run in range(self.n_runs)]
        self.runs = Runs(task, seeds, perturbations, device=self.device)
        if self.yardstick is not None:
            self._units = units
            if units is None:
                self._units = self.yardstick.units(
                    self.family, task, seeds, drawn, self.total_steps
                )
            for run, rng in enumerate(self.runs.generators):
                rng.manual_seed(derive_seed(*path, "minibatches", run))

    def current(self, rule: UpdateRule, perturbations: int = 0) -> Carry:
        """The episode in flight, or the start of the next one; `carry.step` tells which."""
        if self.carry is None or self.carry.step >= self.stop_at:
            self.episode += 1
            self._draw_episode(perturbations)
            with torch.no_grad():
                self.layout, self.carry = begin(rule, self.runs)
            if self.by_start:
                self.extra["start"] = self.carry.loss.abs().clamp_min(1e-30)
        return self.carry

    def unit(self, losses: Tensor) -> Tensor:
        """What the losses of the steps just made, `(T, *lead)`, are to be divided by."""
        if self.by_start:
            return self.extra["start"]
        if self._units is None or self.carry is None:
            return losses.new_ones(())
        end = self.carry.step + 1
        units = self._units[end - len(losses) : end]
        return units.view(*units.shape, *[1] * (losses.dim() - 2))

    def lesson(self) -> Lesson | None:
        """The teacher beside the window that starts now, or None; to be given to `taught`."""
        if self.teacher is None or not self.pull or self.carry is None:
            return None
        return Lesson(self.teacher, self.runs, self.carry, self.extra.get("teacher"))

    def taught(self, lesson: Lesson | None) -> None:
        """Keep the teacher's state for the next window."""
        if lesson is not None:
            self.extra["teacher"] = lesson.state

    def abandon(self) -> None:
        """End the episode now; the next call of `current` starts another."""
        self.carry = None

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on bit for bit."""
        in_flight = None
        if self.carry is not None:
            in_flight = {
                # A window that starts here needs the gradient, not its minibatch.
                "carry": self.carry._replace(batch={})._asdict(),
                "generators": [g.get_state() for g in self.runs.generators],
                "perturbations": self.runs.perturbations,
                "growth": self._growth_in_flight,
                "units": self._units,
            }
        state = {"episode": self.episode, "in_flight": in_flight, "extra": dict(self.extra)}
        return moved(state, "cpu")

    def load_state_dict(self, state: dict[str, Any], rule: UpdateRule) -> None:
        """Restore from `state_dict` of a worker with the same arguments."""
        self.episode, self.extra = state["episode"], moved(state["extra"], self.device)
        self.carry, in_flight = None, state["in_flight"]
        if in_flight is None:
            return
        growth, self.growth = self.growth, in_flight["growth"]
        units = moved(in_flight.get("units"), self.device)
        self._draw_episode(in_flight["perturbations"], units)
        self.growth = growth
        self.carry = Carry(**moved(in_flight["carry"], self.device))
        self.layout = Layout(rule, self.runs.start(), len(self.runs.lead))
        for rng, saved in zip(self.runs.generators, in_flight["generators"], strict=True):
            rng.set_state(saved)


def moved(tree: Any, device: torch.device | str) -> Any:  # noqa: ANN401
    """A copy of nested dicts and lists with every tensor on a device."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: moved(value, device) for key, value in tree.items()}
    return [moved(value, device) for value in tree] if isinstance(tree, list) else tree
