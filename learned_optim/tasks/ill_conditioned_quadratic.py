"""Convex quadratics with a log-spaced spectrum in a random basis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Bools, Floats, Ints, axis
from learned_optim.tasks.base import Batch, Params, Task


@dataclass(frozen=True)
class IllConditionedQuadraticTask(Task):
    """`f(theta) = 1/2 (theta - target)' H (theta - target)`, minimum 0.

    `H = Q diag(lambda) Q'`, lambda log-spaced from `curvature / condition` to `curvature`.
    Parameter `theta` `(dim,)`; constants `root` `(dim, dim)`, a square root of H, and `target`
    `(dim,)`.
    """

    dim: int
    condition: float
    curvature: float
    rotated: bool
    start: float

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """`theta` ~ N(0, start^2), `target` ~ N(0, 1); Q uniform, or the identity."""
        theta = nets.normal(generator, (self.dim,), self.start)
        target = nets.normal(generator, (self.dim,))
        exponents = torch.linspace(0.0, 1.0, self.dim, device=generator.device)
        roots = (self.curvature * self.condition**-exponents).sqrt()
        basis = nets.rotation(generator, self.dim)
        root = roots[:, None] * basis if self.rotated else roots.diag()
        return {"theta": theta}, {"root": root, "target": target}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Half a squared norm, so that it can not be negative by rounding."""
        return 0.5 * (batch["root"] @ (params["theta"] - batch["target"])).square().sum()


@dataclass(frozen=True)
class IllConditionedQuadratic(AxesFamily):
    """Ill-conditioned convex quadratics.

    Args (all axes, see `axes`):
        dim: length of theta.
        condition: largest over smallest eigenvalue.
        curvature: the largest eigenvalue.
        rotated: whether the eigenvectors are random; otherwise they are the coordinates.
        start: standard deviation of theta at the start; the minimum is N(0, 1).

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "ill_conditioned_quadratic"
    task = IllConditionedQuadraticTask

    dim: Ints = axis(10, 30, 100, within=(1, 10_000))
    condition: Floats = axis(1e1, 1e2, 1e3, 1e4, within=(1.0, 1e8))
    curvature: Floats = axis(0.1, 1.0, 10.0, within=(1e-6, 1e6))
    rotated: Bools = axis(True, True, False)
    start: Floats = axis(0.01, 1.0, within=(0.0, 1e3))
