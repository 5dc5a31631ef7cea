"""Curved valleys like Rosenbrock's, that do not overflow when an optimizer overshoots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Floats, Ints, axis
from learned_optim.tasks.base import Batch, Params, Task


@dataclass(frozen=True)
class RosenbrockTask(Task):
    """`f = mean over i of (1 - x_i)^2 + steepness (y_i - c(x_i))^2`, `c(x) = 2 sqrt(1 + x^2) - 2`.

    Rosenbrock, "An automatic method for finding the greatest or least value of a function", 1960.
    Paper / ours: the valley is the parabola `c(x) = x^2` / a hyperbola that agrees with it to third
    order. With the parabola a step that is too long is cubed by the next one, and a run is infinite
    after four; here f grows like a quadratic. Minimum 0 at x = 1, y = c(1). Parameters `x` and `y`,
    `(dim,)` each: the floor of the valley is not along the coordinates.
    """

    dim: int
    steepness: float
    spread: float

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Around the classical start, (-1.2, 1), with standard deviation `spread`."""
        x = nets.normal(generator, (self.dim,), self.spread) - 1.2
        y = nets.normal(generator, (self.dim,), self.spread) + 1.0
        return {"x": x, "y": y}, {}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The mean over the valleys."""
        x, y = params["x"], params["y"]
        valley = 2.0 * (1.0 + x.square()).sqrt() - 2.0
        return ((1.0 - x).square() + self.steepness * (y - valley).square()).mean()


@dataclass(frozen=True)
class Rosenbrock(AxesFamily):
    """Rosenbrock-like valleys.

    Args (all axes, see `axes`):
        dim: number of valleys; there are twice as many parameters.
        steepness: of the walls, over that of the floor; Rosenbrock's is 100.
        spread: standard deviation of the start.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "rosenbrock"
    task = RosenbrockTask

    dim: Ints = axis(1, 5, 20, within=(1, 10_000))
    steepness: Floats = axis(10.0, 100.0, within=(0.0, 1e6))
    spread: Floats = axis(0.3, 1.0, within=(0.0, 1e3))
