"""Factorisation of a low-rank matrix from its entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Floats, Ints, axis
from learned_optim.tasks.base import Batch, Params, Task


@dataclass(frozen=True)
class MatrixFactorisationTask(Task):
    """`f(U, V) = mean over (i, j) of (U V' - M)_ij^2`: not convex, but without bad local minima.

    `M = A B' / sqrt(rank) + noise`, the scales of its components log-spaced over `decades` decades.
    Parameters `left` `(rows, factors)`, `right` `(columns, factors)`; constant `matrix`
    `(rows, columns)`. For the landscape, see Ge, Jin and Zheng, "No spurious local minima in
    nonconvex low rank problems", 2017.
    """

    rows: int
    columns: int
    rank: int
    extra: int
    decades: float
    noise: float
    start: float

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """The factors are N(0, start^2 / factors), with `rank + extra` columns."""
        factors = self.rank + self.extra
        std = self.start * factors**-0.5
        params = {
            "left": nets.normal(generator, (self.rows, factors), std),
            "right": nets.normal(generator, (self.columns, factors), std),
        }
        left = nets.normal(generator, (self.rows, self.rank), self.rank**-0.5)
        right = nets.normal(generator, (self.columns, self.rank))
        exponents = torch.linspace(-self.decades, 0.0, self.rank, device=generator.device)
        noise = nets.normal(generator, (self.rows, self.columns), self.noise)
        return params, {"matrix": (left * 10.0**exponents) @ right.mT + noise}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Over all entries."""
        return (params["left"] @ params["right"].mT - batch["matrix"]).square().mean()


@dataclass(frozen=True)
class MatrixFactorisation(AxesFamily):
    """Low-rank matrix factorisation.

    Args (all axes, see `axes`):
        rows: of the matrix.
        columns: of the matrix.
        rank: of the matrix without its noise.
        extra: factors beyond the rank.
        decades: decimal logarithm of the largest over the smallest of the components' scales.
        noise: standard deviation of the noise; the entries are of order one.
        start: scale of the factors at the start; near zero is a saddle.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "matrix_factorisation"
    task = MatrixFactorisationTask

    rows: Ints = axis(20, 40, within=(1, 10_000))
    columns: Ints = axis(10, 30, within=(1, 10_000))
    rank: Ints = axis(2, 5, within=(1, 1000))
    extra: Ints = axis(0, 5, within=(0, 1000))
    decades: Floats = axis(0.0, 1.0, within=(0.0, 6.0))
    noise: Floats = axis(0.0, 0.1, within=(0.0, 100.0))
    start: Floats = axis(0.1, 1.0, within=(0.0, 100.0))
