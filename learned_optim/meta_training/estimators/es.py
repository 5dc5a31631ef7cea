"""Evolution strategies over whole episodes: see `evolution`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from learned_optim.meta_training.estimators.evolution import Evolution
from learned_optim.meta_training.truncation import Worker
from learned_optim.rules import Weights


@dataclass(frozen=True)
class ES(Evolution):
    """One perturbation and one whole episode for each estimate."""

    name: ClassVar[str] = "es"

    def _length(self, worker: Worker, start: int) -> int:
        return worker.stop_at - start

    def _directions(self, worker: Worker, weights: Weights, start: int) -> tuple[Weights, Weights]:
        noise = self._draw(weights, worker.n_runs, worker.seed, worker.index, worker.episode)
        return noise, noise
