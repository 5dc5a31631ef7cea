"""From lists of tensors to launches of the kernels: a few, however many tensors there are.

Nothing is read back from the device. Imports `triton` when it is imported, as do the kernels and
what is built on this.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learned_optim.backends.copies import readable, write_back_
from learned_optim.backends.kept import Kept, numbers
from learned_optim.backends.triton import kernels as _kernels
from learned_optim.backends.triton.constants import (
    KINDS,
    SURVEY_BLOCK,
    L2LSizes,
    add_up_constants,
    l2l_constants,
    survey_constants,
)
from learned_optim.backends.triton.tables import Layout, lay_out
from learned_optim.rules import default

# What `triton.jit` makes of their signatures no type checker knows.
kernels: Any = _kernels
# Of addresses in bytes and of sizes in elements, for loads and stores of `kernels.VECTOR` float32.
ALIGNMENT, MULTIPLE = 8, 2
_KEPT = Kept()


@dataclass(frozen=True)
class Group:
    """The settings of a step.

    Attributes:
        finite: `(T,)` bool, tensors that do not sit the step out; None: all.
        number: `lr`, the factor on the step.
        lr_tensor: 0-d, in the place of `number`.
        decay: fraction that decoupled decay takes off at `lr` = 1.
        maximize: negate the gradients.
    """

    finite: Tensor | None
    number: float
    lr_tensor: Tensor | None
    decay: float
    maximize: bool

    def lr(self, device: torch.device) -> float | Tensor:
        """As kernels on that device take it: a tensor that lies there, or a number."""
        if self.lr_tensor is None:
            return float(self.number)
        return self.lr_tensor if self.lr_tensor.device == device else float(self.lr_tensor)

    def arguments(self, sizes: Tensor) -> tuple[Tensor, float | Tensor, float, float]:
        """`finite`, or any tensor in its place; `lr`; decay; factor on the gradients."""
        finite = sizes if self.finite is None else self.finite.view(torch.uint8)
        return finite, self.lr(sizes.device), self.decay, -1.0 if self.maximize else 1.0

    def flags(self, device: torch.device) -> dict[str, bool]:
        """What the kernels are compiled for."""
        on_device = isinstance(self.lr(device), Tensor)
        return {"MASKED": self.finite is not None, "TENSOR_LR": on_device}


class Launch:
    """T tensors with gradients and state, ready for kernels.

    Args:
        grads: contiguous, one dtype for all.
        entries: lists of T tensors, contiguous, one dtype each: parameters, and the entries of
            the state.
        block: coordinates a program moves.
        late: tensors that are moved by a launch of their own.
    """

    def __init__(
        self,
        grads: Sequence[Tensor],
        entries: Sequence[Sequence[Tensor]],
        block: int,
        late: Sequence[int] = (),
    ) -> None:
        self.device = grads[0].device
        # Copies must live until they have been read.
        self._held = grads, entries
        together = set(range(len(grads))) - set(late)
        aligned = [_aligned(tensors) for tensors in zip(grads, *entries, strict=True)]
        # Spans of blocks that go together: tensors with wide loads, the others, the late ones.
        self._wide = [index for index in together if aligned[index]]
        self._narrow = [index for index in together if not aligned[index]]
        self._aligned = aligned
        sizes = tuple(grad.numel() for grad in grads)
        order = (*self._wide, *self._narrow, *late)
        self.layout: Layout = self._kept(
            ("layout", sizes, order, block), lambda: lay_out(sizes, order, block, self.device)
        )
        self._grads = self._addresses([grads])
        self._tensors = self._addresses(entries)
        self.stride = len(grads)

    def _kept(self, key: Hashable, make: Any) -> Any:  # noqa: ANN401, whatever make returns
        return _KEPT.get((key, self.device), self.device, make)

    def _addresses(self, entries: Sequence[Sequence[Tensor]]) -> Tensor:
        found = tuple(tensor.data_ptr() for tensors in entries for tensor in tensors)
        return self._kept(("addresses", found), lambda: numbers(found, torch.int64, self.device))

    def spans(self, late: int | None = None) -> list[tuple[int, int, bool]]:
        """First block, number of blocks and alignment of each launch.

        Args:
            late: the late tensor to move; None for all others.
        """
        groups = [(self._wide, True), (self._narrow, False)]
        if late is not None:
            groups = [([late], self._aligned[late])]
        found = [(*self.layout.span(members), wide) for members, wide in groups]
        return [span for span in found if span[1]]

    @property
    def tables(self) -> tuple[Tensor, Tensor, int, Tensor, Tensor, Tensor]:
        """The kernels' first arguments."""
        layout = self.layout
        return (
            self._grads, self._tensors, self.stride, layout.owners, layout.firsts, layout.sizes,
        )  # fmt: skip

    def guard(self) -> AbstractContextManager[Any]:
        """Kernels run on the current device."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def _aligned(tensors: Sequence[Tensor]) -> bool:
    whole = all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in tensors)
    return whole and tensors[0].numel() % MULTIPLE == 0


def survey(
    grads: Sequence[Tensor],
    plains: Sequence[Tensor],
    params: Sequence[Tensor],
    moments: Sequence[Tensor],
    maximize: bool,
) -> Tensor:
    """`(T, 1 + K)` float32: 1 where a gradient is not finite; with moments also `default`'s sums.

    `plains` are the gradients in no basis, in one dtype with them.

    Two kernels: sums over blocks, and sums over those in a fixed order, so that the result is the
    same every time.
    """
    flat = readable(grads)
    # Without sums the gradients are all that is read.
    entries = [*map(readable, (params, moments, plains))] if moments else [flat]
    launch = Launch(flat, entries, SURVEY_BLOCK)
    width = 1 + (len(default.SUMS) if moments else 0)
    rows = torch.empty(len(grads), width, dtype=torch.float32, device=launch.device)
    layout = launch.layout
    partials = torch.empty(len(layout.owners) * width, dtype=torch.float32, device=launch.device)
    with launch.guard():
        for start, blocks, wide in launch.spans():
            kernels.survey[(blocks,)](
                *launch.tables, -1.0 if maximize else 1.0, partials, start,
                GRAD=KINDS[grads[0].dtype],
                PARAM=KINDS[params[0].dtype],
                ALIGNED=wide,
                **survey_constants(bool(moments)),
            )  # fmt: skip
        kernels.add_up[(len(grads),)](
            partials, layout.firsts, layout.blocks, rows, **add_up_constants(width)
        )
    return rows


def l2l_(
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    cells: Sequence[Tensor],
    columns: Tensor,
    matrices: Tensor,
    group: Group,
    sizes: L2LSizes,
) -> None:
    """A step of the rule `l2l` on T tensors, in place; `columns` and `matrices` from `pack`."""
    rows = [readable(params), readable(cells)]
    constants = l2l_constants(sizes)
    launch = Launch(readable(grads), rows, constants["BLOCK"])
    p = 1.0 if sizes.p is None else sizes.p
    with launch.guard():
        for start, blocks, wide in launch.spans():
            kernels.l2l_update[(blocks,)](
                *launch.tables, *group.arguments(launch.layout.sizes),
                columns, matrices, sizes.scale, 1.0 / p, math.exp(p), start,
                GRAD=KINDS[grads[0].dtype],
                PARAM=KINDS[params[0].dtype],
                CELL=KINDS[cells[0].dtype],
                ALIGNED=wide,
                **group.flags(launch.device),
                **constants,
            )  # fmt: skip
    write_back_(params, rows[0])
    write_back_(cells, rows[1])
