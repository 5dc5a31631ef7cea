"""A network that solves a differential equation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learned_optim.tasks import nets
from learned_optim.tasks.base import Batch, Params, Split, Task
from learned_optim.tasks.differential_equation import slope

_VISCOSITY = 0.01 / math.pi


@dataclass(frozen=True)
class Burgers(Task):
    """Residual of Burgers' equation, start and boundary: `u_t + u u_x = (0.01 / pi) u_xx`.

    `u(0, x) = -sin(pi x)`, `u(t, -1) = u(t, 1) = 0`. Raissi, Perdikaris and Karniadakis,
    "Physics-informed neural networks", 2019, section 3.1.1. Paper / ours: nine layers of 20 tanh,
    10,000 fixed points, L-BFGS / `depth` of `width`, fresh points at every step.

    Parameters `layer<i>.weight`, `layer<i>.bias`; minibatch `inside` `(points, 2)` of t and x,
    `start` `(points // 4,)` of x, `edge` `(points // 4, 2)` of t and x.
    """

    depth: int = 4
    width: int = 20
    points: int = 128

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Glorot, as in the paper's released code."""
        return nets.mlp_params(generator, (2, *[self.width] * self.depth, 1), "glorot"), {}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """Uniform in `[0, 1] x [-1, 1]`."""
        few = self.points // 4
        inside = torch.rand(self.points, 2, generator=generator)
        inside[:, 1].mul_(2).sub_(1)
        start = nets.uniform(generator, (few,))
        when = torch.rand(few, generator=generator)
        where = 2.0 * nets.integers(generator, 2, few) - 1
        return {"inside": inside, "start": start, "edge": torch.stack((when, where), -1)}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The sum of three mean squares."""

        def u(t: Tensor, x: Tensor) -> Tensor:
            places = torch.stack((t, x), -1)
            return nets.mlp(params, places, self.depth + 1, "tanh").squeeze(-1)

        t, x = batch["inside"].unbind(-1)

        def u_x(x: Tensor) -> Tensor:
            return slope(lambda place: u(t, place), x)

        u_t = slope(lambda when: u(when, x), t)
        residual = u_t + u(t, x) * u_x(x) - _VISCOSITY * slope(u_x, x)
        start = batch["start"]
        wrong = u(torch.zeros_like(start), start) + torch.sin(math.pi * start)
        edge = u(*batch["edge"].unbind(-1))
        return residual.square().mean() + wrong.square().mean() + edge.square().mean()
