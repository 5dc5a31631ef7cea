"""From lists of tensors to launches of the kernels: a few, however many tensors there are.

Nothing is read back from the device. The only module that imports `triton` when it is imported,
besides the kernels themselves.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from learned_optim.backends.copies import readable, write_back_
from learned_optim.backends.kept import Kept, numbers
from learned_optim.backends.triton import kernels as _kernels
from learned_optim.backends.triton.packing import by_products, padded
from learned_optim.backends.triton.tables import Layout, lay_out
from learned_optim.rules import default

# What `triton.jit` makes of their signatures no type checker knows.
kernels: Any = _kernels
KINDS: dict[torch.dtype, Any] = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
# Of addresses in bytes and of sizes in elements, for loads and stores of `kernels.VECTOR` float32.
ALIGNMENT, MULTIPLE = 8, 2
SURVEY_BLOCK, SURVEY_TILE = 4096, 1024
ADD_UP_TILE = 512
_KEPT = Kept()


class Shape(NamedTuple):
    """How a kernel is cut: coordinates a program moves, and its warps."""

    block: int
    warps: int

    @property
    def options(self) -> dict[str, Any]:
        """For a launch; without contraction a product and a sum are two instructions."""
        return {"BLOCK": self.block, "num_warps": self.warps, "enable_fp_fusion": True}


MULTIPLIED_OUT = Shape(256, 4)
BY_PRODUCTS = Shape(64, 4)


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


class L2LSizes(NamedTuple):
    """The config of `l2l` as its kernel takes it: `p` is None for raw gradients."""

    layers: int
    hidden: int
    p: float | None
    scale: float


def l2l_constants(sizes: L2LSizes) -> dict[str, Any]:
    """What its kernel is compiled for, besides dtypes, alignment and the group's flags."""
    products = by_products(sizes.layers, sizes.hidden)
    return {
        "LAYERS": sizes.layers,
        "HIDDEN": sizes.hidden,
        "PADDED": padded(sizes.hidden, products),
        "LOG_SIGN": sizes.p is not None,
        "PRODUCTS": products,
        **(BY_PRODUCTS if products else MULTIPLIED_OUT).options,
    }


def default_constants(hidden: int) -> dict[str, Any]:
    """The same for the kernel of `default`."""
    size = padded(max(hidden, 1), products=False)
    return {"HIDDEN": hidden, "PADDED": size, **MULTIPLIED_OUT.options}


def survey_constants(moments: bool) -> dict[str, Any]:
    """The same for the survey, which takes sums where there are moments."""
    width = 1 + (len(default.SUMS) if moments else 0)
    cut = {"BLOCK": SURVEY_BLOCK, "TILE": SURVEY_TILE, "enable_fp_fusion": True}
    return {"MOMENTS": tl.float32, "SUMS": moments, "COLUMNS": width, **cut}


def add_up_constants(width: int) -> dict[str, Any]:
    """The same for the sum over blocks."""
    cut = {"TILE": ADD_UP_TILE, "enable_fp_fusion": True}
    return {"COLUMNS": width, "PADDED": 1 << (width - 1).bit_length(), **cut}


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
    params: Sequence[Tensor],
    moments: Sequence[Tensor],
    maximize: bool,
) -> Tensor:
    """`(T, 1 + K)` float32: 1 where a gradient is not finite; with moments also `default`'s sums.

    Two kernels: sums over blocks, and sums over those in a fixed order, so that the result is the
    same every time.
    """
    flat = readable(grads)
    # Without sums the gradients are all that is read.
    entries = [readable(params), readable(moments)] if moments else [flat]
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


class DefaultStep:
    """A step of the rule `default` on T tensors, in place; nothing moves before `move_`.

    Args:
        grads: float32, bfloat16 or float16.
        params: the same shapes.
        moments: `(2, *shape)` each, float32.
        cells: `(2 * hidden, *shape)` each; none where `hidden` is 0.
        columns: from `pack`.
        signals: `(M, T)` float32, from the rule's `control`.
        group: the settings.
        late: tensors that only `move_(tensor, steps)` moves.
    """

    def __init__(
        self,
        grads: Sequence[Tensor],
        params: Sequence[Tensor],
        moments: Sequence[Tensor],
        cells: Sequence[Tensor],
        columns: Tensor,
        signals: Tensor,
        group: Group,
        late: Sequence[int] = (),
    ) -> None:
        self._entries = [entry for entry in (params, moments, cells) if entry]
        self._rows = [readable(entry) for entry in self._entries]
        self._launch = Launch(readable(grads), self._rows, MULTIPLIED_OUT.block, late)
        self._columns, self._signals, self._group = columns, signals.contiguous(), group
        hidden = cells[0].shape[0] // 2 if cells else 0
        self._constants = {
            "GRAD": KINDS[grads[0].dtype],
            "PARAM": KINDS[params[0].dtype],
            "MOMENTS": KINDS[moments[0].dtype],
            "CELL": KINDS[cells[0].dtype] if cells else tl.float32,
            **group.flags(self._launch.device),
            **default_constants(hidden),
        }

    @property
    def flat_params(self) -> list[Tensor]:
        """The parameters that move, `(N,)` each: copies of those that are not contiguous."""
        return [param.view(-1) for param in self._rows[0]]

    def move_(self, late: int | None = None, steps: Tensor | None = None) -> None:
        """Move all tensors that are not late, or the state of one that is: `steps` gets its step.

        Args:
            late: which; None for the others.
            steps: float32, as many as that tensor has coordinates.
        """
        launch = self._launch
        with launch.guard():
            for start, blocks, wide in launch.spans(late):
                kernels.default_update[(blocks,)](
                    *launch.tables, *self._group.arguments(launch.layout.sizes),
                    self._columns, self._signals, self._signals if steps is None else steps,
                    default.TURN, default.ADD, default.FREE, default.CLIP, default.DEAD, start,
                    UNFINISHED=steps is not None,
                    ALIGNED=wide,
                    **self._constants,
                )  # fmt: skip

    def write_back_(self) -> None:
        """Copy into place what was a copy; after the last `move_`."""
        for tensors, copies in zip(self._entries, self._rows, strict=True):
            write_back_(tensors, copies)
