"""Rastrigin functions: a bowl with many local minima, rotated and shifted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Floats, Ints, axis
from learned_optim.tasks.base import Batch, Params, Task


@dataclass(frozen=True)
class RastriginTask(Task):
    """`f(theta) = mean over i of  z_i^2 + amplitude (1 - cos(2 pi z_i))`, `z = Q theta - target`.

    Random instances of the function as in Cao et al., "Learning to optimize in swarms", 2019,
    section 4.2. Paper / ours: a Gaussian matrix and random weights on the cosines / a rotation, so
    that every instance has minimum 0 and the conditioning is that of the other families; the sum /
    the mean. Parameter `theta` `(dim,)`; constants `basis` `(dim, dim)`, `target` `(dim,)`.
    """

    dim: int
    amplitude: float
    start: float

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """`theta` ~ N(0, start^2), `target` ~ N(0, 1), Q uniform."""
        theta = nets.normal(generator, (self.dim,), self.start)
        target = nets.normal(generator, (self.dim,))
        return {"theta": theta}, {"basis": nets.rotation(generator, self.dim), "target": target}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The mean over the dimensions."""
        z = batch["basis"] @ params["theta"] - batch["target"]
        ripple = 1.0 - torch.cos(2.0 * math.pi * z)
        return (z.square() + self.amplitude * ripple).mean()


@dataclass(frozen=True)
class Rastrigin(AxesFamily):
    """Rastrigin functions.

    Args (all axes, see `axes`):
        dim: length of theta.
        amplitude: of the ripples; the classical 10 leaves a minimum in every cell, 0.1 hardly any.
        start: standard deviation of theta at the start.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "rastrigin"
    task = RastriginTask

    dim: Ints = axis(2, 10, 30, within=(1, 10_000))
    amplitude: Floats = axis(0.1, 1.0, 10.0, within=(0.0, 1e6))
    start: Floats = axis(1.0, 3.0, within=(0.0, 1e3))
