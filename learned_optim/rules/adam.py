"""Adam as a rule: a hand-written rule behind the contract, to test the contract against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.rules.base import (
    Clock,
    Coordinates,
    State,
    StateSpec,
    UpdateRule,
    Weights,
    fixed_weights,
)


@dataclass(frozen=True)
class Adam(UpdateRule):
    """Kingma and Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.

    Equals torch.optim.Adam, and torch.optim.AdamW when the optimizer is given `weight_decay`.
    All its numbers are meta-parameters, as the contract asks: `log_lr`, and the two decay rates as
    logits, so that each can be meta-trained without leaving its range.

    Args:
        learning_rate: initial value of the meta-parameter.
        beta1: likewise.
        beta2: likewise.
        eps: added to the root of the second moment.
    """

    name: ClassVar[str] = "adam"

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not 0.0 < self.learning_rate <= 1e3:
            raise ValueError(f"learning_rate must be in (0, 1e3] but is {self.learning_rate}")
        if not 0.0 < self.eps <= 1.0:
            raise ValueError(f"eps must be in (0, 1] but is {self.eps}")
        for field in ("beta1", "beta2"):
            if not 0.0 < getattr(self, field) < 1.0:
                raise ValueError(f"{field} must be in (0, 1) but is {getattr(self, field)}")

    @property
    def state_spec(self) -> Mapping[str, StateSpec]:
        """`moments`: the running means of the gradient and of its square."""
        return {"moments": StateSpec(rows=2)}

    @property
    def decay_scale(self) -> float:
        """The learning rate: decoupled decay is then AdamW's."""
        return self.learning_rate

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Three scalars."""
        return {"log_lr": (), "logit_beta1": (), "logit_beta2": ()}

    def init_weights(self, generator: torch.Generator) -> Weights:
        """The config's values; nothing is drawn."""
        values = {
            "log_lr": math.log(self.learning_rate),
            "logit_beta1": math.log(self.beta1 / (1 - self.beta1)),
            "logit_beta2": math.log(self.beta2 / (1 - self.beta2)),
        }
        return fixed_weights(values)

    def control(
        self, sums: Tensor, facts: Tensor, state: State, clock: Clock, weights: Weights
    ) -> tuple[Tensor, State]:
        """Signals: beta1, beta2, the bias-corrected step size, the root of the correction of v."""
        beta1, beta2 = (
            weights[key].sigmoid().unsqueeze(-1) for key in ("logit_beta1", "logit_beta2")
        )
        step = clock.step.to(sums.dtype)
        size = weights["log_lr"].exp().unsqueeze(-1) / (1 - beta1**step)
        root = (1 - beta2**step).sqrt()
        return torch.stack(torch.broadcast_tensors(beta1, beta2, size, root), dim=-2), state

    def update(
        self, coords: Coordinates, state: State, signals: Tensor, weights: Weights
    ) -> tuple[Tensor, State]:
        """`-size * m / (sqrt(v) / root + eps)`."""
        beta1, beta2, size, root = signals.unbind(-2)
        m, v = state["moments"].unbind(-2)
        m = m + (1 - beta1) * (coords.grad - m)
        v = beta2 * v + (1 - beta2) * coords.grad * coords.grad
        # The clamp is far below eps; it keeps the derivative of the root finite at v = 0.
        step = -size * m / (v.clamp_min(torch.finfo(v.dtype).tiny).sqrt() / root + self.eps)
        return step, {"moments": torch.stack((m, v), dim=-2)}
