"""Preprocessing of gradients into features: pure functions, `(..., N)` -> `(..., F, N)`."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def raw(grad: Tensor) -> Tensor:
    """The gradient itself, `(..., 1, N)`: what the paper feeds on quadratics."""
    return grad.unsqueeze(-2)


def log_sign(grad: Tensor, p: float = 10.0, widths: Tensor | None = None) -> Tensor:
    """Logarithm and direction of the gradient, `(..., 2, N)`.

    `(log|g| / p, sgn g)` where `|g| >= e^-p`, else `(-1, e^p g)`: continuous, and both features
    stay near [-1, 1] over 2p orders of magnitude (in base e).

    Paper / released code / ours: p = 10 / k = 5 and the magnitude clamped at -1 / p = 10.

    Args:
        grad: `(..., N)`.
        p: the constant.
        widths: as `grad`, positive, or None. With them the values are the same and the derivative
            is that of `log_sign_smoothed`. The features themselves have slopes of up to e^p (22026)
            in a strip that a gradient hits once in hundreds of steps, and what is differentiated
            through many steps is then mostly noise.

    Reference: Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
    2016, appendix A, https://arxiv.org/abs/1606.04474
    """
    magnitude = grad.abs().clamp_min(math.exp(-p)).log() / p
    direction = (grad * math.exp(p)).clamp(-1.0, 1.0)
    values = torch.stack((magnitude, direction), dim=-2)
    if widths is None:
        return values
    smoothed = log_sign_smoothed(grad, widths, p)
    return values.detach() + (smoothed - smoothed.detach())


def log_sign_smoothed(grad: Tensor, widths: Tensor, p: float = 10.0) -> Tensor:
    """What `log_sign` is like for a gradient that is known up to noise of a width, `(..., 2, N)`.

    `(log(g^2 + h^2) / 2p, the mean of sgn(g + h z))` for z of the density 2 / (pi (1 + z^2)^2),
    whose standard deviation is 1: both are smooth, and the density is a rational function.

    Args:
        grad: `(..., N)`, g.
        widths: likewise, h > 0.
        p: the constant of `log_sign`.
    """
    ratio = grad / widths
    magnitude = (grad.square() + widths.square()).log() / (2 * p)
    direction = (ratio.atan() + ratio / (1 + ratio.square())) * (2 / math.pi)
    return torch.stack((magnitude, direction), dim=-2)
