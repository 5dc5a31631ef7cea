"""Preprocessing of gradients into features: pure functions, `(..., N)` -> `(..., F, N)`."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def raw(grad: Tensor) -> Tensor:
    """The gradient itself, `(..., 1, N)`: what the paper feeds on quadratics."""
    return grad.unsqueeze(-2)


def log_sign(grad: Tensor, p: float = 10.0) -> Tensor:
    """Logarithm and direction of the gradient, `(..., 2, N)`.

    `(log|g| / p, sgn g)` where `|g| >= e^-p`, else `(-1, e^p g)`: continuous, and both features
    stay near [-1, 1] over 2p orders of magnitude (in base e).

    Paper / released code / ours: p = 10 / k = 5 and the magnitude clamped at -1 / p = 10.

    Reference: Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
    2016, appendix A, https://arxiv.org/abs/1606.04474
    """
    # The clamp keeps log() finite at g = 0; those entries take the second branch anyway.
    log_ratio = grad.abs().clamp_min(torch.finfo(grad.dtype).tiny).log() / p
    small = log_ratio < -1.0
    magnitude = log_ratio.clamp_min(-1.0)
    direction = torch.where(small, grad * math.exp(p), grad.sign())
    return torch.stack((magnitude, direction), dim=-2)
