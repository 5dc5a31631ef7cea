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

from learned_optim.meta_training.seeding import derive_seed, generator
from learned_optim.meta_training.unroll import Carry, Layout, Runs, begin
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
        u = torch.rand((), generator=rng).item()
        return min(self.high, round(self.low * (1 - u) ** (-1 / self.tail)))


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
    ) -> None:
        self.family, self.n_runs, self.horizon = family, runs, horizon
        self.seed, self.index, self.stagger, self.device = seed, index, stagger, device
        self.growth = 1.0  # factor on the horizon of the episodes to come
        self.episode = -1
        self.extra: dict[str, Any] = {}
        self.runs: Runs
        self.layout: Layout
        self.carry: Carry | None = None
        self.total_steps = 0
        self.stop_at = 0

    def _draw_episode(self, perturbations: int) -> None:
        path = ("episode", self.seed, self.index, self.episode)
        task = self.family.sample(generator(*path, "task"))
        rng = generator(*path, "horizon")
        self._growth_in_flight = self.growth
        self.total_steps = max(1, round(self.growth * self.horizon.sample(rng)))
        self.stop_at = self.total_steps
        if self.stagger and self.episode == 0:
            self.stop_at = int(torch.randint(1, self.total_steps + 1, (), generator=rng))
        seeds = [derive_seed(*path, "run", run) for run in range(self.n_runs)]
        self.runs = Runs(task, seeds, perturbations, device=self.device)

    def current(self, rule: UpdateRule, perturbations: int = 0) -> Carry:
        """The episode in flight, or the start of the next one; `carry.step` tells which."""
        if self.carry is None or self.carry.step >= self.stop_at:
            self.episode += 1
            self._draw_episode(perturbations)
            with torch.no_grad():
                self.layout, self.carry = begin(rule, self.runs)
        return self.carry

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
            }
        return {"episode": self.episode, "in_flight": in_flight, "extra": dict(self.extra)}

    def load_state_dict(self, state: dict[str, Any], rule: UpdateRule) -> None:
        """Restore from `state_dict` of a worker with the same arguments."""
        self.episode, self.extra = state["episode"], dict(state["extra"])
        self.carry = None
        if state["in_flight"] is None:
            return
        growth, self.growth = self.growth, state["in_flight"]["growth"]
        self._draw_episode(state["in_flight"]["perturbations"])
        self.growth = growth
        self.carry = Carry(**state["in_flight"]["carry"])
        self.layout = Layout(rule, self.runs.start(), len(self.runs.lead))
        for rng, saved in zip(self.runs.generators, state["in_flight"]["generators"], strict=True):
            rng.set_state(saved)
