"""Small matrices as they are seen in their eigenbases, and how these turn: many in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from learned_optim.kernels import native, structs
from learned_optim.kernels.checks import (
    check_all_float32,
    storage_type,
    thread_count,
)

STILL, TURNING, FIRM = 0, 1, 2  # what `see_` does to a matrix's bases
Shapes = Sequence[tuple[int, int]]


class Bases(NamedTuple):
    """Of T matrices `(A, B)` of shapes of their own; all float32, contiguous.

    Attributes:
        left: `(A, A)` each.
        right: `(B, B)` each.
        spread: `(1, A + B)` each.
    """

    left: Sequence[Tensor]
    right: Sequence[Tensor]
    spread: Sequence[Tensor]


def see_(
    grads: Sequence[Tensor],
    bases: Bases,
    momenta: Sequence[Tensor],
    shapes: Shapes,
    turns: Sequence[int],
    *,
    memory: float,
    ridge: float,
    threads: int | None = None,
) -> list[Tensor]:
    """What is seen of gradients, after the bases have turned where it is their turn.

    Args:
        grads: `(A, B)` each, or anything of as many numbers, contiguous, each of one of `STORAGE`;
            cut as `ranges.bounded` does, and NaN where they are not finite.
        bases: in place.
        momenta: as the matrices, float32, contiguous: what was summed up of what is seen; turns
            along, in place.
        shapes: `(A, B)` of each.
        turns: of each, one of `STILL`, `TURNING` and `FIRM` (made orthonormal besides).
        memory: turns that a covariance is averaged over.
        ridge: of the mean eigenvalue, added to all.
        threads: torch's number by default; the result does not depend on it.

    Returns:
        One `(A * B,)` for each matrix, float32.

    Raises:
        ValueError: for a wrong size, dtype, device or layout.
        native.Unavailable: where the kernels are not built.
    """
    counts = counts_of(shapes)
    check_bases(bases, shapes)
    for name, others in (("grads", grads), ("momenta", momenta), ("turns", turns)):
        check_length(name, others, len(shapes))
    if not {*turns} <= {STILL, TURNING, FIRM}:
        raise ValueError(f"turns must be {STILL}, {TURNING} or {FIRM} but are {[*turns]}")
    check_all_float32("momenta", momenta, counts)
    # One by one, as each may be of a dtype of its own.
    types = [
        storage_type("grads", [grad], [count]) for grad, count in zip(grads, counts, strict=True)
    ]
    seen = list(torch.empty(sum(counts), dtype=torch.float32, device="cpu").split(counts))
    table = native.Table(
        addresses(grads),
        addresses(seen),
        *map(addresses, bases),
        addresses(momenta),
        [rows for rows, _ in shapes],
        [columns for _, columns in shapes],
        types,
        turns,
    )
    arguments = structs.SeeArguments(
        count=len(counts),
        tensors=table.address,
        memory=memory,
        ridge=ridge,
        threads=thread_count(threads),
    )
    native.call("learned_optim_see", arguments)
    return seen


def check_bases(bases: Bases, shapes: Shapes) -> None:
    """Refuse bases that do not fit the shapes."""
    wanted = (
        [rows * rows for rows, _ in shapes],
        [columns * columns for _, columns in shapes],
        [rows + columns for rows, columns in shapes],
    )
    for name, tensors, counts in zip(Bases._fields, bases, wanted, strict=True):
        check_length(name, tensors, len(shapes))
        check_all_float32(name, tensors, counts)


def check_length(name: str, things: Sequence[object], count: int) -> None:
    """Refuse more or fewer than one for each matrix."""
    if len(things) != count:
        raise ValueError(f"{name} must be one for each of {count} matrices but are {len(things)}")


def counts_of(shapes: Shapes) -> list[int]:
    """Numbers of entries; refuses sides that are not positive."""
    if any([min(shape) < 1 for shape in shapes]):  # noqa: C419
        raise ValueError(f"shapes must be of positive sides but are {[*shapes]}")
    return [rows * columns for rows, columns in shapes]


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Where they lie."""
    return [*map(Tensor.data_ptr, tensors)]
