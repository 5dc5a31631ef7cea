"""The range in which the rule `default` can square what it is given."""

from __future__ import annotations

import torch
from torch import Tensor


def tiny(like: Tensor) -> float:
    """Below this, mean squares count as zero."""
    return 1e-200 if like.dtype == torch.float64 else 1e-30


def bounded(x: Tensor) -> Tensor:
    """Cut at where the sum of the squares of a billion would overflow."""
    limit = 1e140 if x.dtype == torch.float64 else 1e14
    return x.clamp(-limit, limit)
