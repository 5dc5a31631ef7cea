"""Noise-reuse evolution strategies: see `evolution`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from learned_optim.meta_training.estimators.evolution import Evolution
from learned_optim.meta_training.truncation import Worker
from learned_optim.rules import Weights


@dataclass(frozen=True)
class NRES(Evolution):
    """One perturbation an episode, one estimate a window (Li et al. 2023, algorithm 1)."""

    name: ClassVar[str] = "nres"

    def _directions(self, worker: Worker, weights: Weights, start: int) -> tuple[Weights, Weights]:
        noise = self._draw(weights, worker.n_runs, worker.seed, worker.index, worker.episode)
        return noise, noise
