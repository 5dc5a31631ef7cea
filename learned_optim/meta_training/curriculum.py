"""The state of a curriculum over horizons: see `recipe.Curriculum`."""

from __future__ import annotations

import math

from learned_optim.meta_training.recipe import Curriculum


class Stages:
    """Which stage a run is in, told the score of each validation."""

    def __init__(self, config: Curriculum) -> None:
        self.config = config
        self.stage = 0
        self.best_before = math.inf
        self.best_here = math.inf
        self.without = 0

    @property
    def factor(self) -> float:
        """On the drawn horizon."""
        return self.config.factors[self.stage]

    def see(self, score: float) -> None:
        """Take note of a validation; may move on to the next stage."""
        if score < self.best_here:
            self.best_here, self.without = score, 0
        else:
            self.without += 1
        last = self.stage == len(self.config.factors) - 1
        if last or self.without < self.config.patience or self.best_here >= self.best_before:
            return
        self.stage += 1
        self.best_before, self.best_here, self.without = self.best_here, math.inf, 0

    def state_dict(self) -> dict[str, float]:
        """Everything but the config."""
        return {
            "stage": self.stage,
            "best_before": self.best_before,
            "best_here": self.best_here,
            "without": self.without,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore from `state_dict`."""
        self.stage, self.without = int(state["stage"]), int(state["without"])
        self.best_before, self.best_here = state["best_before"], state["best_here"]
