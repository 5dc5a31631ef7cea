"""The last stage of small matrices: whole steps out of their bases or straightened, and taken."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from torch import Tensor

from learned_optim.kernels import native, structs
from learned_optim.kernels.bases import (
    Bases,
    Shapes,
    addresses,
    check_bases,
    check_length,
    counts_of,
)
from learned_optim.kernels.checks import (
    check_all_float32,
    check_float32,
    storage_type,
    thread_count,
)

STRAIGHTEN_TERMS = 5


def unsee_(
    steps: Sequence[Tensor],
    bases: Bases,
    params: Sequence[Tensor],
    owed: Sequence[Tensor],
    shapes: Shapes,
    terms: Tensor,
    *,
    lr: float = 1.0,
    keep: float = 1.0,
    threads: int | None = None,
) -> None:
    """Steps out of their bases, and into the parameters as `take_` does.

    A matrix whose step holds a number that is not finite stays where it is. autograd does not
    notice that parameters change: the caller tells it (`increment_version`).

    Args:
        steps: `(A * B,)` each, float32, contiguous: the whole steps as they are seen; written over.
        bases: of the matrices.
        params: contiguous, one dtype of `STORAGE` for all.
        owed: as `steps`; in place.
        shapes: `(A, B)` of each.
        terms: `(2, T)`, float32: of each step the share that waits, and of what is owed what falls
            due.
        lr: factor on what is taken.
        keep: factor on the parameter.
        threads: torch's number by default; the result does not depend on it.

    Raises:
        ValueError: for a wrong size, dtype, device or layout.
        native.Unavailable: where the kernels are not built.
    """
    if not shapes:
        return
    check_bases(bases, shapes)
    sides = addresses(bases.left), addresses(bases.right)
    table, param_type = _table(steps, sides, params, owed, shapes)
    rows = _rows(terms, 2, len(shapes))
    arguments = structs.UnseeArguments(
        count=len(shapes),
        tensors=table.address,
        terms=rows.data_ptr(),
        lr=lr,
        keep=keep,
        param_type=param_type,
        threads=thread_count(threads),
    )
    native.call("learned_optim_unsee", arguments)


def straighten_(
    steps: Sequence[Tensor],
    params: Sequence[Tensor],
    owed: Sequence[Tensor],
    shapes: Shapes,
    terms: Tensor,
    quintics: Sequence[tuple[float, float, float]],
    *,
    lr: float = 1.0,
    keep: float = 1.0,
    threads: int | None = None,
) -> None:
    """Steps with `Default.finish` behind them, taken as `unsee_` does.

    Its products are made for matrices that stay in the caches.

    Args:
        steps: `(A * B,)` each, float32, contiguous: the whole steps; written over.
        params: contiguous, one dtype of `STORAGE` for all.
        owed: as `steps`; in place.
        shapes: `(A, B)` of each.
        terms: `(5, T)`, float32: length, blend and gain of `Default.finish`, then as in `unsee_`.
        quintics: see `matrices.orthogonalize`.
        lr: factor on what is taken.
        keep: factor on the parameter.
        threads: torch's number by default; the result does not depend on it.

    Raises:
        ValueError: for a wrong size, dtype, device or layout.
        native.Unavailable: where the kernels are not built.
    """
    if not shapes:
        return
    nowhere = [0] * len(shapes)
    table, param_type = _table(steps, (nowhere, nowhere), params, owed, shapes)
    rows = _rows(terms, STRAIGHTEN_TERMS, len(shapes))
    if any([len(quintic) != 3 for quintic in quintics]):  # noqa: C419
        raise ValueError(f"quintics must be of three numbers each but are {[*quintics]}")
    coefficients = array("f", [number for quintic in quintics for number in quintic])
    arguments = structs.StraightenArguments(
        count=len(shapes),
        iterations=len(quintics),
        tensors=table.address,
        terms=rows.data_ptr(),
        quintics=coefficients.buffer_info()[0],
        lr=lr,
        keep=keep,
        param_type=param_type,
        threads=thread_count(threads),
    )
    native.call("learned_optim_straighten", arguments)


def _rows(terms: Tensor, count: int, members: int) -> Tensor:
    """`(count, T)` -> a row for each matrix."""
    if tuple(terms.shape) != (count, members):
        raise ValueError(f"terms must have shape {(count, members)} but has {tuple(terms.shape)}")
    rows = terms.mT.contiguous()
    check_float32("terms", rows, (members, count))
    return rows


def _table(
    steps: Sequence[Tensor],
    sides: tuple[list[int], list[int]],
    params: Sequence[Tensor],
    owed: Sequence[Tensor],
    shapes: Shapes,
) -> tuple[native.Table, int]:
    """`MatrixStep` of src/table.h for each matrix, and the parameters' dtype."""
    counts = counts_of(shapes)
    for name, tensors in (("steps", steps), ("params", params), ("owed", owed)):
        check_length(name, tensors, len(shapes))
    check_all_float32("steps", steps, counts)
    check_all_float32("owed", owed, counts)
    param_type = storage_type("params", params, counts)
    columns = [*map(addresses, (params, owed)), *map(list, zip(*shapes, strict=True))]
    return native.Table(addresses(steps), *sides, *columns), param_type
