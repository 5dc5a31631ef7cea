"""What the kernels' tensors and numbers must be before a pointer to them is handed on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from learned_optim.kernels import native, structs

MAX_LAYERS = 8
MAX_HIDDEN = 256
# Storage dtypes of an optimizer's tensors, numbered as in src/table.h; arithmetic is float32.
STORAGE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_DTYPE, _ON_CPU = attrgetter("dtype"), attrgetter("is_cpu")


class CellSizes(NamedTuple):
    """A kind of cell, numbered as in src/cells.h.

    Attributes:
        kind: its number.
        gates: blocks of H rows in `w_ih`, `w_hh` and `b`.
        vectors: of the state.
        extra: further vectors of H weights.
    """

    kind: int
    gates: int
    vectors: int
    extra: int


CELLS = {
    "lstm": CellSizes(0, 4, 2, 0),
    "rnn": CellSizes(1, 1, 1, 0),
    "gru": CellSizes(2, 3, 1, 1),
    "peephole": CellSizes(3, 4, 2, 3),
    "coupled": CellSizes(4, 3, 2, 0),
}


def weight_count(layers: int, hidden: int, inputs: int, cell: str = "lstm") -> int:
    """Length of the flat weights: see `cells_step_`."""
    sizes = CELLS[cell]
    columns = [inputs + hidden + 1] + [2 * hidden + 1] * (layers - 1)
    cells = sum(hidden * (sizes.gates * count + sizes.extra) for count in columns)
    return cells + hidden + 1


def state_rows(layers: int, hidden: int, cell: str = "lstm") -> int:
    """S: see `cells_step_`."""
    return CELLS[cell].vectors * layers * hidden


def cells_arguments(
    layers: int, hidden: int, p: float | None, cell: str = "lstm"
) -> structs.CellsArguments:
    """The cells' sizes as the library wants them.

    Raises:
        ValueError: for one outside its range.
    """
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {[*CELLS]} but is {cell!r}")
    for name, value, high in (("layers", layers, MAX_LAYERS), ("hidden", hidden, MAX_HIDDEN)):
        if not 1 <= value <= high:
            raise ValueError(f"{name} must be in [1, {high}] but is {value}")
    if p is not None and not 0.0 < p <= 50.0:
        raise ValueError(f"p must be in (0, 50], or None for raw gradients, but is {p}")
    inputs, p, exp_p = (1, 1.0, 1.0) if p is None else (2, p, math.exp(p))
    return structs.CellsArguments(CELLS[cell].kind, layers, hidden, inputs, p, exp_p)


def check_float32(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse anything but contiguous float32 of this shape on the CPU."""
    if tensor.dtype != torch.float32 or not tensor.is_cpu:
        raise ValueError(
            f"{name} must be float32 on the CPU but is {tensor.dtype} on {tensor.device}"
        )
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape} but has {tuple(tensor.shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous but has strides {tensor.stride()}")


def check_all_float32(name: str, tensors: Sequence[Tensor], counts: Sequence[int]) -> None:
    """Refuse anything but contiguous float32 of these numbers of elements on the CPU."""
    if (tensors or counts) and storage_type(name, tensors, counts) != STORAGE[torch.float32]:
        raise ValueError(f"{name} must be float32 but are {tensors[0].dtype}")


def pointers(tensors: Sequence[Tensor]) -> native.Table:
    """Where they lie."""
    return native.Table([*map(Tensor.data_ptr, tensors)])


def thread_count(threads: int | None) -> int:
    """`threads`, by default torch's number."""
    if threads is None:
        return torch.get_num_threads()
    if threads < 1:
        raise ValueError(f"threads must be at least 1 but is {threads}")
    return threads


def storage_type(name: str, tensors: Sequence[Tensor], counts: Sequence[int], rows: int = 1) -> int:
    """The common dtype's number; refuses what the kernel cannot read through a pointer."""
    if len(tensors) != len(counts):
        raise ValueError(f"{name} must be {len(counts)} tensors but are {len(tensors)}")
    dtype = tensors[0].dtype
    if dtype not in STORAGE:
        raise ValueError(f"{name} must be one of {[*STORAGE]} but is {dtype}")
    wanted = [rows * count for count in counts]
    # By columns: with small tensors every turn of a loop is felt.
    alike = {*map(_DTYPE, tensors)} == {dtype} and all(map(_ON_CPU, tensors))
    if not alike or not all(map(Tensor.is_contiguous, tensors)):
        raise _refusal(name, tensors, wanted)
    if [*map(Tensor.numel, tensors)] != wanted:
        raise _refusal(name, tensors, wanted)
    return STORAGE[dtype]


def _refusal(name: str, tensors: Sequence[Tensor], wanted: list[int]) -> ValueError:
    """What is wrong with the first tensor that is not as it must be."""
    dtype = tensors[0].dtype
    for index, (tensor, count) in enumerate(zip(tensors, wanted, strict=True)):
        if tensor.dtype != dtype or not tensor.is_contiguous() or not tensor.is_cpu:
            return ValueError(
                f"all of {name} must be contiguous {dtype} on the CPU but number {index} is "
                f"{tensor.dtype} on {tensor.device} with strides {tensor.stride()}"
            )
        if tensor.numel() != count:
            return ValueError(
                f"{name}[{index}] must have {count} elements but has {tensor.numel()}"
            )
    raise AssertionError(f"nothing is wrong with {name}")
