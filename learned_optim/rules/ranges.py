"""The range in which the rule `default` can square what it is given."""

from __future__ import annotations

import torch
from torch import Tensor


def tiny(like: Tensor) -> float:
    """Below this, mean squares count as zero."""
    return 1e-200 if like.dtype == torch.float64 else 1e-30


def limit(like: Tensor) -> float:
    """From here on the sum of the squares of a billion would overflow."""
    return 1e140 if like.dtype == torch.float64 else 1e14


def bounded(x: Tensor) -> Tensor:
    """Cut at `limit`."""
    most = limit(x)
    return x.clamp(-most, most)
