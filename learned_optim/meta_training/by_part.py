"""Coordinates sorted by the part of a `ByLayer` rule that moves them.

The rule itself tries both parts on every coordinate and drops half of what it computed. Here each
part sees its own coordinates alone, as the plain `L2L` that it is, and so by the kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from learned_optim.rules import PARTS, ByLayer


class Routing:
    """Which stretches of the joined coordinates belong to which part.

    Args:
        rule: the rule.
        shapes: of the tensors, in the order of the joined coordinates.
        sizes: their numbers of coordinates.
    """

    def __init__(
        self, rule: ByLayer, shapes: Sequence[tuple[int, ...]], sizes: Sequence[int]
    ) -> None:
        ends = itertools.accumulate(sizes, initial=0)
        pieces = zip(map(rule.part_of, shapes), itertools.pairwise(ends), strict=True)
        self._stretches = [
            (part, bounds[0][1][0], bounds[-1][1][1])
            for part, group in itertools.groupby(pieces, key=lambda piece: piece[0])
            for bounds in [list(group)]
        ]

    def take(self, joined: Tensor, part: str) -> Tensor:
        """The coordinates of one part, `(..., N)` -> `(..., N_part)`."""
        own = [joined[..., start:stop] for name, start, stop in self._stretches if name == part]
        return torch.cat(own, dim=-1) if own else joined[..., :0]

    def put(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Inverse of `take` of all parts."""
        lengths = {
            part: [stop - start for name, start, stop in self._stretches if name == part]
            for part in PARTS
        }
        pieces = {part: iter(parts[part].split(lengths[part], dim=-1)) for part in PARTS}
        return torch.cat([next(pieces[part]) for part, _, _ in self._stretches], dim=-1)
