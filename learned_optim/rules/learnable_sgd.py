"""Gradient descent with a learned step size and momentum: the smallest rule there is.

Its meta-gradient on a quadratic has a closed form, which the estimators are tested against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.rules.base import (
    Coordinates,
    State,
    StateSpec,
    UpdateRule,
    Weights,
    fixed_weights,
)


@dataclass(frozen=True)
class LearnableSGD(UpdateRule):
    """`m <- sigmoid(logit_momentum) m + g`, `theta <- theta - exp(log_lr) m`.

    Args:
        learning_rate: initial value of exp(log_lr).
        momentum: initial value of sigmoid(logit_momentum); 0 leaves momentum out altogether, so
            that log_lr is the only meta-parameter and nothing is stored.
    """

    name: ClassVar[str] = "learnable_sgd"

    learning_rate: float = 1e-2
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.learning_rate <= 1e3:
            raise ValueError(f"learning_rate must be in (0, 1e3] but is {self.learning_rate}")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1) but is {self.momentum}")

    @property
    def state_spec(self) -> Mapping[str, StateSpec]:
        """`momentum`: one row, where there is momentum."""
        return {"momentum": StateSpec(rows=1)} if self.momentum else {}

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """One scalar, two with momentum."""
        return {"log_lr": ()} | ({"logit_momentum": ()} if self.momentum else {})

    def init_weights(self, generator: torch.Generator) -> Weights:
        """The config's values; nothing is drawn."""
        values = {"log_lr": math.log(self.learning_rate)}
        if self.momentum:
            values["logit_momentum"] = math.log(self.momentum / (1 - self.momentum))
        return fixed_weights(values)

    def update(
        self, coords: Coordinates, state: State, signals: Tensor, weights: Weights
    ) -> tuple[Tensor, State]:
        """See the class."""
        size = weights["log_lr"].exp().unsqueeze(-1)
        if not self.momentum:
            return -size * coords.grad, {}
        keep = weights["logit_momentum"].sigmoid().unsqueeze(-1)
        momentum = keep * state["momentum"].squeeze(-2) + coords.grad
        return -size * momentum, {"momentum": momentum.unsqueeze(-2)}
