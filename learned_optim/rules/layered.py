"""A hand-written teacher: Adam with a schedule, a rate for each kind of tensor, and a power.

For one task, on episodes of `PERIOD` steps; its constants mean little elsewhere. What it is for is
to be imitated: a coordinatewise rule is not told which tensor a coordinate is of, but the first
gradients tell the layers of a network apart, and a recurrent rule can remember them.
"""

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

PERIOD = 100.0  # steps in which the schedule does its work
RISE = 5.0  # steps of the warm-up
SIZE = 1e-3  # the root mean square gradient at which the power says nothing
CLIP = 30.0  # of the direction
LEAST = 1e-8  # root mean squares count as no less

# Meta-parameters, with x the time over `PERIOD` and n the log of a tensor's coordinates over 5.
# Found by CMA-ES on the base task of the paper's MNIST experiment, loss at step 100: some 200
# generations of 16 candidates in three rounds, four to six fresh runs each.
CONSTANTS: dict[str, float] = {
    "log_step": 1.245,
    "warmup": 1.142,  # off the log of the length at the start
    "slope": 0.388,  # of that log, by x
    "bend": -3.9,  # by x^2
    "matrix_count": -2.695,  # of matrices, by n
    "matrix_count_slope": 0.401,  # by n x
    "vector": -3.249,  # of all others
    "vector_slope": 0.775,  # by x
    "vector_count": -5.404,  # by n
    "logit_beta1": 0.33,
    "logit_beta1_slope": 2.084,
    "logit_beta2": 0.209,
    "fresh": 0.245,  # share of the gradient itself beside the momentum
    "fresh_slope": 0.775,
    "power": -0.107,  # of the root mean square gradient that a step keeps; 0: Adam, 1: no scaling
    "power_slope": 0.467,
}
SIGNALS = ("beta1", "correct1", "beta2", "correct2", "length", "fresh", "power")


@dataclass(frozen=True)
class Layered(UpdateRule):
    """`-length * (m + fresh g) / r * (r / SIZE)^power`, with r the root of Adam's second moment.

    Every factor may change with time; see `CONSTANTS`, which are the meta-parameters.
    """

    name: ClassVar[str] = "layered"

    @property
    def state_spec(self) -> Mapping[str, StateSpec]:
        """`moments`: the running means of the gradient and of its square."""
        return {"moments": StateSpec(rows=2)}

    @property
    def coordinatewise(self) -> bool:
        """No: the length depends on the tensor's shape."""
        return False

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Scalars."""
        return dict.fromkeys(CONSTANTS, ())

    def init_weights(self, generator: torch.Generator) -> Weights:
        """`CONSTANTS`; nothing is drawn."""
        return fixed_weights(CONSTANTS)

    def describe(self, shape: tuple[int, ...]) -> tuple[float, ...]:
        """Whether it is a matrix, and the log of its coordinates (of an empty tensor 0) over 5."""
        return float(len(shape) > 1), math.log(max(math.prod(shape), 1)) / 5

    def control(
        self, sums: Tensor, facts: Tensor, state: State, clock: Clock, weights: Weights
    ) -> tuple[Tensor, State]:
        """`SIGNALS`."""
        w = {key: value.unsqueeze(-1) for key, value in weights.items()}
        matrix, log_count = facts.to(sums.dtype).unbind(-2)
        step = clock.step.to(sums.dtype)
        x = step / PERIOD
        of_matrix = (w["matrix_count"] + w["matrix_count_slope"] * x) * log_count
        of_vector = w["vector"] + w["vector_slope"] * x + w["vector_count"] * log_count
        length = w["log_step"] + w["slope"] * x + w["bend"] * x * x
        length = length - w["warmup"].abs() * (-step / RISE).exp()
        length = length + matrix * of_matrix + (1 - matrix) * of_vector
        beta1 = (w["logit_beta1"] + w["logit_beta1_slope"] * x).sigmoid()
        beta2 = w["logit_beta2"].sigmoid()
        # The bound keeps betas that round to 1 finite.
        correct1, correct2 = (1 / (1 - b**step).clamp_min(1e-6) for b in (beta1, beta2))
        signals = (
            beta1,
            correct1,
            beta2,
            correct2,
            length.exp(),
            w["fresh"] + w["fresh_slope"] * x,
            w["power"] + w["power_slope"] * x,
        )
        return torch.stack(torch.broadcast_tensors(*signals), dim=-2), state

    def update(
        self, coords: Coordinates, state: State, signals: Tensor, weights: Weights
    ) -> tuple[Tensor, State]:
        """See the class."""
        s = dict(zip(SIGNALS, signals.unbind(-2), strict=True))
        # Squares beyond this would overflow.
        g = coords.grad.clamp(-1e15, 1e15)
        m, v = state["moments"].unbind(-2)
        m = m + (1 - s["beta1"]) * (g - m)
        v = v + (1 - s["beta2"]) * (g * g - v)
        log_root = (v * s["correct2"] + LEAST * LEAST).log() / 2
        scale = (s["power"] * (log_root - math.log(SIZE)) - log_root).exp()
        direction = (m * s["correct1"] + s["fresh"] * g) * scale
        new_state = {"moments": torch.stack((m, v), dim=-2)}
        return -s["length"] * direction.clamp(-CLIP, CLIP), new_state
