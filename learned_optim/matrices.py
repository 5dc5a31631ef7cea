"""Orthogonalisation of matrices by Newton-Schulz iterations: matrix products only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

Quintic = tuple[float, float, float]  # a, b, c of `a x + b x^3 + c x^5`
# What each iteration does to singular values: together they bring all from 0.003 on into the band
# [0.77, 1.2], whose spread does not hurt an optimizer. Each is the best that one quintic can do
# about what the one before leaves (Amsel et al., "The polar express", 2025, algorithm 1). As there,
# all but the last leave 1 % of room for rounding, the first one 3 %: they explode above 1.
# One quintic over and over (Jordan et al., "Muon", 2024) takes five iterations for as much.
QUINTICS: tuple[Quintic, ...] = (
    (8.1379, -22.6511, 15.8196),
    (4.0034, -2.9228, 0.5419),
    (3.4709, -2.5494, 0.5002),
    (2.4901, -1.8343, 0.4368),
)
# Whether the CPU multiplies bfloat16, in tiles (AMX) or in pairs (AVX512-BF16); asked once, as
# torch.compile cannot ask.
CPU_HAS_BFLOAT16: bool = any(
    getattr(torch.cpu, f"_is_{kind}_supported", lambda: False)()
    for kind in ("amx_tile", "avx512_bf16")
)
# Rows and columns from which that beats float32 (measured, tiles: 0.9 times as fast at 128, 2.3 at
# 256, 5 at 512, 7 at 1024; pairs: 1.1, 2.2, 2.3).
CPU_BFLOAT16_FROM = 256
# Columns per row from which the iterations are cheaper on the Gram matrix (measured: 1.1 times as
# fast at 3, 1.4 at 4, 2 at 6), and how many follow before it is made anew.
WIDE, FOLLOWING = 2, 2


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor of two or more dimensions: the first against all others.

    A convolution's kernel `(out, in, h, w)` is the matrix `out x (in * h * w)` that multiplies a
    patch of the image.
    """
    columns = 1
    for size in shape[1:]:
        columns *= size
    return shape[0], columns


def orthogonalize(matrix: Tensor, quintics: Sequence[Quintic] = QUINTICS) -> Tensor:
    """`(..., A, B)` -> the same singular vectors with all singular values near 1.

    In bfloat16 where that is several times faster, which is as good: see `in_bfloat16`. Else, for
    matrices much wider than high or higher than wide, on the Gram matrix. A zero matrix stays zero.

    Reference: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024,
    https://kellerjordan.github.io/posts/muon/
    """
    return straighten(matrix, quintics)[0]


def straighten(matrix: Tensor, quintics: Sequence[Quintic] = QUINTICS) -> tuple[Tensor, Tensor]:
    """`orthogonalize`, and what it finds on the way: the matrix's root mean square, `(..., 1, 1)`.

    On a CPU every pass over a large matrix counts: ten of them take as long as Adam's step.
    """
    # Two divisions, so that the squares of tiny and huge entries stay finite. The first divisor
    # cancels, so no derivative goes through it. After it the norm is at least 1, but for a zero
    # matrix, which the bound keeps from a division by zero.
    inside = matrix.detach()
    peak = torch.maximum(inside.amax((-2, -1), keepdim=True), -inside.amin((-2, -1), keepdim=True))
    x = matrix / torch.where(peak > 0, peak, 1)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    size = peak * (norm / math.sqrt(matrix.shape[-2] * matrix.shape[-1]))
    # The Frobenius norm bounds the spectral norm, so the iteration starts inside its basin.
    x = x / norm.clamp_min(1)
    x = x.bfloat16() if in_bfloat16(matrix) else x
    return iterate(x, quintics).to(matrix.dtype), size


def iterate(x: Tensor, quintics: Sequence[Quintic] = QUINTICS) -> Tensor:
    """`orthogonalize` for a matrix of norm 1 or less, in its own dtype.

    `x <- a x + b (x x^T) x + c (x x^T)^2 x` for each quintic, `(..., A, B)`.

    Of a matrix with more rows than columns the same by `x^T x`, from the right: its transpose would
    lie across the memory of all that it meets next.
    """
    lead = x.shape[:-2]
    if len(lead) > 1:
        x = x.flatten(0, -3)
    short, long = sorted(x.shape[-2:])
    uneven = long >= WIDE * short and x.dtype != torch.bfloat16
    x = (_iterate_gram if uneven else _iterate_matrix)(x, quintics)
    return x.unflatten(0, lead) if len(lead) > 1 else x


def _iterate_matrix(x: Tensor, quintics: Sequence[Quintic]) -> Tensor:
    """As the formula says: `2 A^2 B + A^3` multiply-adds an iteration, A the shorter side."""
    for a, b, c in quintics:
        gram = _gram(x)
        polynomial = _plus_product(b, gram, c, gram, gram)
        x = _plus_product(a, x, 1.0, *_in_order(polynomial, x))
    return x


def _iterate_gram(x: Tensor, quintics: Sequence[Quintic]) -> Tensor:
    """The same numbers by at most `4 A^3` an iteration, and `2 A^2 B` for every `FOLLOWING`.

    Iteration k multiplies x by a polynomial p_k of the Gram matrix `x x^T`, which becomes
    `p_k^2 x x^T`, as they commute; so x itself is needed at the beginning and the end alone. But
    the Gram matrix has the squares of the singular values: what rounding does to the least of them
    grows by a^2 an iteration, from float32's 1e-7 a thousandfold in the first two. Made anew
    after these, it leaves the result as exact as the formula's; in bfloat16 it would not.
    """
    for first in range(0, len(quintics), FOLLOWING):
        gram, polynomials = _gram(x), []
        together = quintics[first : first + FOLLOWING]
        for left, (a, b, c) in zip(reversed(range(len(together))), together, strict=True):
            polynomial = _plus_product(b, gram, c, gram, gram)
            polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
            polynomials.append(polynomial)
            if left:
                gram = polynomial @ (polynomial @ gram)
        x = torch.matmul(*_in_order(reduce(torch.matmul, polynomials), x))
    return x


def _is_tall(x: Tensor) -> bool:
    return x.shape[-2] > x.shape[-1]


def _gram(x: Tensor) -> Tensor:
    """Of the shorter side."""
    return x.mT @ x if _is_tall(x) else x @ x.mT


def _in_order(square: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix of the shorter side and x, as they are multiplied."""
    return (x, square) if _is_tall(x) else (square, x)


def in_bfloat16(matrix: Tensor) -> bool:
    """Whether the iterations run in bfloat16: float32 on CUDA, or large where a CPU multiplies it.

    The singular values end anywhere in a band, so rounding them by 1 % changes little.
    """
    if matrix.dtype != torch.float32:
        return False
    large = min(matrix.shape[-2:]) >= CPU_BFLOAT16_FROM
    return matrix.is_cuda or (matrix.device.type == "cpu" and CPU_HAS_BFLOAT16 and large)


def _plus_product(alpha: float, base: Tensor, beta: float, left: Tensor, right: Tensor) -> Tensor:
    """`alpha * base + beta * left @ right` in one pass, for matrices and for batches `(P, ...)`."""
    product = torch.addmm if base.dim() == 2 else torch.baddbmm
    return product(base, left, right, beta=alpha, alpha=beta)
