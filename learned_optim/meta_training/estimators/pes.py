"""Persistent evolution strategies: see `evolution`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from learned_optim.meta_training.estimators.evolution import Evolution
from learned_optim.meta_training.truncation import Worker
from learned_optim.rules import Weights


@dataclass(frozen=True)
class PES(Evolution):
    """A new perturbation each window, their sum as the direction (Vicol et al. 2021, alg. 2)."""

    name: ClassVar[str] = "pes"

    def _directions(self, worker: Worker, weights: Weights, start: int) -> tuple[Weights, Weights]:
        noise = self._draw(weights, worker.n_runs, worker.seed, worker.index, worker.episode, start)
        if start > 0:
            before = worker.extra["perturbation_sum"]
            total = {key: before[key] + value for key, value in noise.items()}
        else:
            total = noise
        worker.extra["perturbation_sum"] = total
        return noise, total
