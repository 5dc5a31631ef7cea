"""Orthogonalisation of matrices by Newton-Schulz iterations: matrix products only."""

from __future__ import annotations

import torch
from torch import Tensor

# Quintic whose fixed points are not 1 but the band [0.7, 1.2]: it lifts small singular values
# fastest, and the spread within the band does not hurt an optimizer (Jordan et al. 2024, "Muon").
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# Whether the CPU multiplies bfloat16 tiles (AMX); asked once, as torch.compile cannot ask.
CPU_HAS_TILES: bool = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
# Rows and columns from which that beats float32 (measured: 0.9 times as fast at 128, 2.3 at 256, 5
# at 512, 7 at 1024).
CPU_TILES_FROM = 256


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor of two or more dimensions: the first against all others.

    A convolution's kernel `(out, in, h, w)` is the matrix `out x (in * h * w)` that multiplies a
    patch of the image.
    """
    columns = 1
    for size in shape[1:]:
        columns *= size
    return shape[0], columns


def orthogonalize(matrix: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """`(..., A, B)` -> the same singular vectors with all singular values near 1.

    In bfloat16 where that is several times faster, which is as good: see `in_bfloat16`. A zero
    matrix stays zero.

    Reference: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024,
    https://kellerjordan.github.io/posts/muon/
    """
    # Two divisions, so that the squares of tiny and huge entries stay finite. The first divisor
    # cancels, so no derivative goes through it. After it the norm is at least 1, but for a zero
    # matrix, which the bound keeps from a division by zero.
    peak = matrix.detach().abs().amax((-2, -1), keepdim=True)
    x = matrix / torch.where(peak > 0, peak, 1)
    # The Frobenius norm bounds the spectral norm, so the iteration starts inside its basin.
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(1)
    x = x.bfloat16() if in_bfloat16(matrix) else x
    wide = x.shape[-2] <= x.shape[-1]
    x = _iterate(x if wide else x.mT, iterations)
    return (x if wide else x.mT).to(matrix.dtype)


def _iterate(x: Tensor, iterations: int) -> Tensor:
    """`x <- a x + b (x x^T) x + c (x x^T)^2 x` some times, `(..., A, B)`, A <= B."""
    lead = x.shape[:-2]
    if len(lead) > 1:
        x = x.flatten(0, -3)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.mT
        x = _plus_product(a, x, 1.0, _plus_product(b, gram, c, gram, gram), x)
    return x.unflatten(0, lead) if len(lead) > 1 else x


def in_bfloat16(matrix: Tensor) -> bool:
    """Whether the iterations run in bfloat16: float32 on CUDA, and large on a CPU with tiles.

    The singular values end anywhere in a band, so rounding them by 1 % changes little.
    """
    if matrix.dtype != torch.float32:
        return False
    large = min(matrix.shape[-2:]) >= CPU_TILES_FROM
    return matrix.is_cuda or (matrix.device.type == "cpu" and CPU_HAS_TILES and large)


def _plus_product(alpha: float, base: Tensor, beta: float, left: Tensor, right: Tensor) -> Tensor:
    """`alpha * base + beta * left @ right` in one pass, for matrices and for batches `(P, ...)`."""
    product = torch.addmm if base.dim() == 2 else torch.baddbmm
    return product(base, left, right, beta=alpha, alpha=beta)
