"""Networks that solve a differential equation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Ints, Strings, axis
from learned_optim.tasks.base import Batch, Params, Split, Task

EQUATIONS = ("poisson", "heat", "advection")
SPEED = 0.5  # of the advection

# Of two coordinates in [0, 1], `(points,)` each.
Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DifferentialEquationTask(Task):
    """Mean squares of an equation's residual and of what is wrong at the boundary.

    With `w = waves * pi`, on the unit square, by a tanh network of t and x:

    - "poisson": `(u_tt + u_xx) / (2 w^2) + sin(w t) sin(w x) = 0`, zero at all four sides;
    - "heat": `u_t = u_xx / w^2`, `u(0, x) = sin(w x)`, zero at x = 0 and 1;
    - "advection": `u_t + SPEED u_x = 0`, `u(0, x) = sin(w x)`, `u(t, 0) = -sin(w SPEED t)`.

    Lagaris, Likas and Fotiadis, 1998; Raissi, Perdikaris and Karniadakis, "Physics-informed neural
    networks", 2019. Papers / ours: fixed points / fresh ones at every step.

    Parameters `layer<i>.weight`, `layer<i>.bias`; minibatch `inside` `(batch_size, 2)` of t and x,
    `along` `(batch_size // 2,)`, places on a side, and `side` likewise, 0 or 1.
    """

    equation: str
    waves: int
    depth: int
    width: int
    batch_size: int

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Glorot, biases zero."""
        return nets.mlp_params(generator, (2, *[self.width] * self.depth, 1), "glorot"), {}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """Uniform points."""
        few, device = self.batch_size // 2, generator.device
        return {
            "inside": torch.rand(self.batch_size, 2, generator=generator, device=device),
            "along": torch.rand(few, generator=generator, device=device),
            "side": nets.integers(generator, 2, few).to(torch.get_default_dtype()),
        }

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The sum of the mean squares of `wrong`."""

        def u(t: Tensor, x: Tensor) -> Tensor:
            places = 2.0 * torch.stack((t, x), -1) - 1.0
            return nets.mlp(params, places, self.depth + 1, "tanh").squeeze(-1)

        return torch.stack([part.square().mean() for part in self.wrong(u, batch)]).sum()

    def wrong(self, u: Function, batch: Batch) -> list[Tensor]:
        """The residual inside, then what is off at each boundary; zero where `u` is a solution."""
        t, x = batch["inside"].unbind(-1)
        along, side, w = batch["along"], batch["side"], self.waves * math.pi
        zero = torch.zeros_like(along)

        def u_t(when: Tensor) -> Tensor:
            return slope(lambda when: u(when, x), when)

        def u_x(where: Tensor) -> Tensor:
            return slope(lambda where: u(t, where), where)

        if self.equation == "poisson":
            source = torch.sin(w * t) * torch.sin(w * x)
            residual = (slope(u_t, t) + slope(u_x, x)) / (2 * w * w) + source
            return [residual, u(along, side), u(side, along)]
        start = u(zero, along) - torch.sin(w * along)
        if self.equation == "heat":
            return [u_t(t) - slope(u_x, x) / (w * w), start, u(along, side)]
        return [u_t(t) + SPEED * u_x(x), start, u(along, zero) + torch.sin(w * SPEED * along)]


def slope(function: Callable[[Tensor], Tensor], place: Tensor) -> Tensor:
    """The derivative at each place: places do not know of each other, so that of the sum."""
    return grad(lambda place: function(place).sum())(place)


@dataclass(frozen=True)
class DifferentialEquation(AxesFamily):
    """Equations of two coordinates.

    Args (all axes, see `axes`):
        equation: one of `EQUATIONS`.
        waves: half periods of the solution along a side.
        depth: layers with a tanh.
        width: units in each.
        batch_size: points inside; half as many on the boundary.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "differential_equation"
    task = DifferentialEquationTask

    equation: Strings = axis(*EQUATIONS, among=EQUATIONS)
    waves: Ints = axis(1, 2, within=(1, 64))
    depth: Ints = axis(2, 3, 4, within=(1, 32))
    width: Ints = axis(20, 32, within=(1, 4096))
    batch_size: Ints = axis(64, 96, within=(2, 1_000_000))
