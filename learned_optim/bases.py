"""The eigenbases of a matrix's gradients, followed as they turn: matrix products and small QRs.

A gradient G, A x B, is seen as `left^T G right`, where `left` are the eigenvectors of the running
mean of `G G^T` and `right` those of `G^T G`. Single coordinates are then nearly uncorrelated, so
that what divides each by its own root mean square does what a full preconditioner would do
("SOAP": Vyas et al., "SOAP: improving and stabilizing Shampoo using Adam", ICLR 2025, algorithm 3).

Deviation from there: the covariances are not kept, only the bases and one eigenvalue for each of
their vectors. Every `PERIOD`-th gradient turns them, all alike whatever their size. In the basis
that is in use the covariance is nearly diagonal, so what lies beside the diagonal is news, and one
QR of it with the eigenvalues on the diagonal (a step of the power iteration, as there) turns the
basis towards it. That halves the memory and leaves out two products a step
(figures: docs/diary_default.md).
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

# Rows or columns, and the longer side over the shorter, from where on `pays` says no; but for
# matrices with at least so few columns and more rows.
LONGEST, MOST_UNEVEN = 128, 5
FEWEST = 4
PERIOD = 2  # steps between two turns
MEMORY = 30.0  # turns that a covariance is averaged over
FIRM = 64  # steps after which bases are made orthonormal again: rounding adds up over their turns
RIDGE = 1e-4  # of the mean eigenvalue: vectors along which there was no gradient stay in order

Number = TypeVar("Number", int, Tensor)


class Basis(NamedTuple):
    """Of matrices `(..., A, B)`.

    Attributes:
        left: `(..., A, A)`, orthonormal columns.
        right: `(..., B, B)`, likewise.
        spread: `(..., 1, A + B)`, the eigenvalues of both, of gradients of one root mean square.
    """

    left: Tensor
    right: Tensor
    spread: Tensor


class Turn(NamedTuple):
    """How bases have turned: a matrix seen in the old ones -> seen in the new ones.

    Attributes:
        left: `(..., A, A)`.
        right: `(..., B, B)`.
    """

    left: Tensor
    right: Tensor

    def apply(self, seen: Tensor) -> Tensor:
        """A matrix that was seen in the old bases, in the new ones."""
        return self.left.mT @ seen @ self.right


def pays(rows: int, columns: int) -> bool:
    """Whether matrices of this shape should have bases.

    A basis costs memory and time like a square matrix of its side. In larger matrices and in more
    uneven ones orthogonalised steps (`matrices`) are as good or better, but for the layers behind
    few inputs (docs/diary_default.md).
    """
    short, long = sorted((rows, columns))
    even = short > 1 and long <= MOST_UNEVEN * short
    return long <= LONGEST and (even or FEWEST <= columns <= rows)


def shapes(rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    """Of a `Basis`' entries."""
    return {"left": (rows, rows), "right": (columns, columns), "spread": (1, rows + columns)}


def initial(rows: int, columns: int, *, like: Tensor) -> Basis:
    """The coordinates' own, before there was a gradient."""
    left, right = (
        torch.eye(side, dtype=like.dtype, device=like.device) for side in (rows, columns)
    )
    return Basis(left, right, left.new_zeros(1, rows + columns))


def is_due(step: Number) -> Number:
    """Whether bases turn at step number `step`, counted from 1: at the first, then in turn.

    True or False for a number, for a tensor a tensor.
    """
    return (step == 1) | (step % PERIOD == 0)


def is_firm(step: int) -> bool:
    """Whether to make bases orthonormal again at step number `step`, see `FIRM`."""
    return step % FIRM == 0


def see(matrix: Tensor, basis: Basis) -> Tensor:
    """A matrix as it is seen in the bases."""
    return basis.left.mT @ matrix @ basis.right


def unsee(seen: Tensor, basis: Basis) -> Tensor:
    """The inverse of `see`."""
    return basis.left @ seen @ basis.right.mT


def follow(
    seen: Tensor, basis: Basis, due: Tensor | None = None, *, firm: bool = True
) -> tuple[Basis, Turn]:
    """Turn the bases towards the eigenvectors, given one more gradient.

    Args:
        seen: the gradient, `(..., A, B)`, in the bases so far. One with a number that is not finite
            turns nothing; one too small to be squared counts as zero.
        basis: of the gradients before.
        due: `()`, whether to turn at all, where no host can know; None: yes.
        firm: whether to make them orthonormal again by a Newton-Schulz iteration, see `FIRM`.
    """
    size = seen.square().mean((-2, -1), keepdim=True).sqrt()
    x = seen / size.masked_fill(size <= torch.finfo(seen.dtype).tiny ** 0.5, math.inf)
    turns = size.isfinite() if due is None else size.isfinite() & due
    spreads = basis.spread.split(seen.shape[-2:], dim=-1)
    left, left_spread, left_turn = _turned(basis.left, spreads[0], x @ x.mT, turns, firm=firm)
    right, right_spread, right_turn = _turned(basis.right, spreads[1], x.mT @ x, turns, firm=firm)
    spread = torch.cat((left_spread, right_spread), dim=-1)
    return Basis(left, right, spread), Turn(left_turn, right_turn)


def _turned(
    side: Tensor, spread: Tensor, news: Tensor, turns: Tensor, *, firm: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One side of the bases after a turn, its eigenvalues, and the turn.

    Args:
        side: `(..., n, n)`.
        spread: `(..., 1, n)`.
        news: `(..., n, n)`, what is averaged, in this basis.
        turns: `(..., 1, 1)`, whether there is one at all.
        firm: see `follow`.
    """
    covariance = news / MEMORY
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    # One more than the mean: a gradient of zero must not make it singular.
    ridge = RIDGE * (1 + MEMORY * diagonal.mean(-1, keepdim=True))
    diagonal.add_((1 - 1 / MEMORY) * spread.squeeze(-2) + ridge)
    z, r = torch.linalg.qr(covariance)
    # The factorisation is unique but for signs; these let no vector turn around.
    sign = r.diagonal(dim1=-2, dim2=-1).sign()
    z, r = z * sign.unsqueeze(-2), r * sign.unsqueeze(-1)
    # The diagonal of z^T covariance z, as the covariance is z r.
    spread = torch.where(turns, (r * z.mT).sum(-1).unsqueeze(-2), spread)
    z = torch.where(turns, z, torch.eye(z.shape[-1], dtype=z.dtype, device=z.device))
    side = side @ z
    if firm:
        side = torch.where(turns, 1.5 * side - 0.5 * side @ (side.mT @ side), side)
    return side, spread, z
