"""How a kernel's programs are dealt out over many tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learned_optim.backends.kept import numbers


@dataclass(frozen=True)
class Layout:
    """How tensors are cut into blocks.

    Attributes:
        owners: `(blocks,)` int32, the tensor that each block is cut from.
        firsts: `(T,)` int64, each tensor's first block.
        sizes: `(T,)` int64, its elements.
        blocks: `(T,)` int64, its number of blocks.
        first: `firsts`, on the host.
        count: `blocks`, on the host.
    """

    owners: Tensor
    firsts: Tensor
    sizes: Tensor
    blocks: Tensor
    first: tuple[int, ...]
    count: tuple[int, ...]

    def span(self, members: Sequence[int]) -> tuple[int, int]:
        """First block and number of blocks of tensors that stand side by side in the order."""
        start = min((self.first[index] for index in members), default=0)
        return start, sum(self.count[index] for index in members)


def lay_out(sizes: Sequence[int], order: Sequence[int], block: int, device: torch.device) -> Layout:
    """Cut tensors of these sizes into blocks; those stand in the order that `order` has them in."""
    count = [-(-size // block) for size in sizes]
    first = [0] * len(sizes)
    total = 0
    for index in order:
        first[index] = total
        total += count[index]
    in_order = [count[index] for index in order]
    owners = torch.repeat_interleave(
        numbers(order, torch.int32, device),
        numbers(in_order, torch.int64, device),
        output_size=total,
    )
    firsts, elements, blocks = (numbers(x, torch.int64, device) for x in (first, sizes, count))
    return Layout(owners, firsts, elements, blocks, tuple(first), tuple(count))
