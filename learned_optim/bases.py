"""The eigenbases of a matrix's gradients, followed as they turn: matrix products and small QRs.

A gradient G, A x B, is seen as `left^T G right`, where `left` are the eigenvectors of the running
mean of `G G^T` and `right` those of `G^T G`. Single coordinates are then nearly uncorrelated, so
that what divides each by its own root mean square does what a full preconditioner would do
("SOAP": Vyas et al., "SOAP: improving and stabilizing Shampoo using Adam", ICLR 2025, algorithm 3).

Deviations from there, which make it cheaper than Muon's iterations (DESIGN.md has figures):

- The covariances are not kept, only the bases and one eigenvalue for each of their vectors; and
  they are fed by every `PERIOD`-th gradient alone. In the basis that is in use the covariance is
  nearly diagonal, so what lies beside the diagonal is news, and one QR of it with the eigenvalues
  on the diagonal (a step of the power iteration, as there) turns the basis towards it.
- Matrices are cut into blocks of at most `LONGEST` rows and columns, each with bases of its own, as
  Shampoo's implementations do: memory and time per number are then those of small matrices.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

LONGEST = 128  # rows or columns of a block
MOST_UNEVEN = 5  # the longer side over the shorter, from where on `pays` says no
PERIOD = 2  # steps between two turns
MEMORY = 30.0  # turns that a covariance is averaged over
FIRM = 64  # steps after which bases are made orthonormal again: rounding adds up over their turns
RIDGE = 1e-4  # of the mean eigenvalue: vectors along which there was no gradient stay in order

Number = TypeVar("Number", int, Tensor)


class Basis(NamedTuple):
    """Of the K blocks of matrices, `a x b` each.

    Attributes:
        left: `(..., K * a, a)`, orthonormal columns.
        right: `(..., K * b, b)`, likewise.
        spread: `(..., K, a + b)`, the eigenvalues of both, of gradients of one root mean square.
    """

    left: Tensor
    right: Tensor
    spread: Tensor


class Turn(NamedTuple):
    """How bases have turned: a block seen in the old ones -> seen in the new ones.

    Attributes:
        left: `(..., K, a, a)`.
        right: `(..., K, b, b)`.
    """

    left: Tensor
    right: Tensor

    def apply(self, seen: Tensor) -> Tensor:
        """Blocks that were seen in the old bases, in the new ones."""
        return self.left.mT @ seen @ self.right


class Blocks(NamedTuple):
    """How a matrix is cut: `down * across` blocks of `rows x columns`, the last ones cut short."""

    down: int
    across: int
    rows: int
    columns: int

    @classmethod
    def of(cls, rows: int, columns: int) -> Blocks:
        """As few as the limits allow, as even as can be."""
        down, across = -(-rows // LONGEST), -(-columns // LONGEST)
        return cls(down, across, -(-rows // down), -(-columns // across))

    @property
    def count(self) -> int:
        """K."""
        return self.down * self.across

    def cut(self, matrix: Tensor) -> Tensor:
        """`(..., A, B)` -> `(..., K, a, b)`, filled up with zeros."""
        if self.count == 1:
            return matrix.unsqueeze(-3)
        below = self.down * self.rows - matrix.shape[-2]
        beside = self.across * self.columns - matrix.shape[-1]
        if below or beside:
            matrix = torch.nn.functional.pad(matrix, (0, beside, 0, below))
        parts = matrix.unflatten(-1, (self.across, self.columns))
        return parts.unflatten(-3, (self.down, self.rows)).transpose(-3, -2).flatten(-4, -3)

    def join(self, blocks: Tensor, rows: int, columns: int) -> Tensor:
        """The inverse of `cut`."""
        if self.count == 1:
            return blocks.squeeze(-3)
        parts = blocks.unflatten(-3, (self.down, self.across)).transpose(-3, -2)
        return parts.flatten(-2).flatten(-3, -2)[..., :rows, :columns]


def pays(rows: int, columns: int) -> bool:
    """Whether matrices of this shape should have bases.

    A basis of the longer side costs as much memory and time as the matrix times what it is longer
    by; and in matrices that are much longer, orthogonalised steps (`matrices`) are better too.
    """
    short, long = sorted((rows, columns))
    return 1 < short and long <= MOST_UNEVEN * short


def shapes(rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    """Of a `Basis`' entries."""
    blocks = Blocks.of(rows, columns)
    return {
        "left": (blocks.count * blocks.rows, blocks.rows),
        "right": (blocks.count * blocks.columns, blocks.columns),
        "spread": (blocks.count, blocks.rows + blocks.columns),
    }


def initial(rows: int, columns: int, *, like: Tensor) -> Basis:
    """The coordinates' own, before there was a gradient."""
    blocks, sizes = Blocks.of(rows, columns), shapes(rows, columns)
    left, right = (
        torch.eye(side, dtype=like.dtype, device=like.device).repeat(blocks.count, 1)
        for side in (blocks.rows, blocks.columns)
    )
    return Basis(left, right, left.new_zeros(sizes["spread"]))


def is_due(step: Number) -> Number:
    """Whether bases turn at step number `step`, counted from 1: at the first, then in turn.

    True or False for a number, for a tensor a tensor.
    """
    return (step == 1) | (step % PERIOD == 0)


def is_firm(step: int) -> bool:
    """Whether to make bases orthonormal again at this step, see `FIRM`."""
    return step % FIRM == 0


def see(matrix: Tensor, basis: Basis) -> Tensor:
    """A matrix `(..., A, B)` as it is seen in the bases, `(..., K, a, b)`."""
    left, right = _sides(basis)
    return left.mT @ Blocks.of(*matrix.shape[-2:]).cut(matrix) @ right


def unsee(seen: Tensor, basis: Basis) -> Tensor:
    """The inverse of `see`, of blocks put together to the matrix `(..., A, B)`, likewise."""
    blocks = Blocks.of(*seen.shape[-2:])
    left, right = _sides(basis)
    return blocks.join(left @ blocks.cut(seen) @ right.mT, *seen.shape[-2:])


def together(blocks: Tensor, rows: int, columns: int) -> Tensor:
    """Blocks `(..., K, a, b)` put together to the matrix `(..., A, B)`."""
    return Blocks.of(rows, columns).join(blocks, rows, columns)


def follow(
    seen: Tensor, basis: Basis, due: Tensor | None = None, *, firm: bool = True
) -> tuple[Basis, Turn]:
    """Turn the bases towards the eigenvectors, given one more gradient.

    Args:
        seen: the gradient's blocks, `(..., K, a, b)`, in the bases so far. Where one holds a number
            that is not finite, nothing turns.
        basis: of the gradients before.
        due: `()`, whether to turn at all, where no host can know; None: yes.
        firm: whether to make them orthonormal again by a Newton-Schulz iteration, see `FIRM`.
    """
    size = seen.square().mean((-2, -1), keepdim=True).sqrt()
    x = seen / size.clamp_min(torch.finfo(seen.dtype).tiny)
    turns = size.isfinite().all(-3, keepdim=True)
    if due is not None:
        turns = turns & due
    sides, spreads = _sides(basis), basis.spread.split(seen.shape[-2:], dim=-1)
    pairs = zip(sides, spreads, (x @ x.mT, x.mT @ x), strict=True)
    turned = [_turned(*pair, turns, firm=firm) for pair in pairs]
    (left, right), spread, turn = (
        [each[0].flatten(-3, -2) for each in turned],
        torch.cat([each[1] for each in turned], dim=-1),
        Turn(*(each[2] for each in turned)),
    )
    return Basis(left, right, spread), turn


def _turned(
    side: Tensor, spread: Tensor, news: Tensor, turns: Tensor, *, firm: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One side of the bases after a turn, its eigenvalues, and the turn.

    Args:
        side: `(..., K, n, n)`.
        spread: `(..., K, n)`.
        news: `(..., K, n, n)`, what is averaged, in this basis.
        turns: `(..., 1, 1, 1)`, whether there is one at all.
        firm: see `follow`.
    """
    covariance = news / MEMORY
    # The trace is that of the other side's identity, but for a gradient of zero.
    ridge = RIDGE * (1 + news.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True))
    covariance.diagonal(dim1=-2, dim2=-1).add_((1 - 1 / MEMORY) * spread + ridge)
    z, r = torch.linalg.qr(covariance)
    # The factorisation is unique but for signs; these let no vector turn around.
    sign = r.diagonal(dim1=-2, dim2=-1).sign()
    z, r = z * sign.unsqueeze(-2), r * sign.unsqueeze(-1)
    # The diagonal of z^T covariance z, as the covariance is z r.
    found = torch.where(turns.squeeze(-1), (r * z.mT).sum(-1), spread)
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    z = torch.where(turns, z, eye)
    side = side @ z
    if firm:
        side = torch.where(turns, 1.5 * side - 0.5 * side @ (side.mT @ side), side)
    return side, found, z


def _sides(basis: Basis) -> tuple[Tensor, Tensor]:
    """Left and right of each block, `(..., K, a, a)` and `(..., K, b, b)`."""
    left, right = (side.unflatten(-2, (-1, side.shape[-1])) for side in basis[:2])
    return left, right
