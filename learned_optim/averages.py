"""Parameters at the mean of where the steps have led, for as long as somebody looks.

Under a rule that defers part of its steps (`rules.deferral`) the parameters are a mix of z, where
whole steps would be, and x, the mean of all z so far. What is owed is z - x, so x is within reach
at any time, and no second set of parameters has to be kept for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """A parameter, local and real, and its way to the mean.

    Attributes:
        param: written in place.
        owed: the same shape.
        factor: of what is owed, that leads from the mean to the parameter; a number or `()`.
    """

    param: Tensor
    owed: Tensor
    factor: float | Tensor


@contextmanager
def at_mean(places: Iterable[Place]) -> Iterator[None]:
    """Move parameters to their means, and afterwards back to the bit, whatever happens within.

    Copies of parameters that an autocast region keeps, cast, are dropped both times.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for param, owed, factor in places:
                kept.append((param, param.clone()))
                param.copy_(param.to(owed.dtype) - owed * factor)
        torch.clear_autocast_cache()
        yield
    finally:
        with torch.no_grad():
            # Last first: of two parameters on one memory, the first was kept as it was.
            for param, value in reversed(kept):
                param.copy_(value)
        torch.clear_autocast_cache()
