"""An optimizer's step of the rule `default`, but for its matrix stage, on many tensors in one call.

`default_survey` comes first, then what the caller does once a tensor, then `default_update_`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from learned_optim.kernels import native
from learned_optim.kernels.checks import check_float32, storage_type, thread_count
from learned_optim.kernels.default_runs import (
    ADVICE,
    HAND,
    SIGNALS,
    SUMS,
    TELLS,
    default_weight_count,
    level_count,
)


def default_survey(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    moments: Sequence[Tensor],
    *,
    maximize: bool = False,
    threads: int | None = None,
) -> Tensor:
    """Of each tensor, whether its gradient holds NaN or infinity, and `Default.summarize`.

    Args:
        params: T of them, any shapes, contiguous, one dtype of `STORAGE` for all.
        grads: as `params`; their dtype may be another.
        moments: `(2, *param.shape)` each, float32: m and v.
        maximize: negate the gradients.
        threads: torch's number by default; the result does not depend on it.

    Returns:
        `(T, 1 + 5)`: 1 or 0, then the sums.

    Raises:
        ValueError: for a wrong size, dtype, device or layout.
        native.Unavailable: where the kernels are not built.
    """
    survey = torch.zeros(len(params), 1 + SUMS, dtype=torch.float32)
    if not params:
        return survey
    counts = [param.numel() for param in params]
    arguments = native.DefaultArguments(
        count=len(counts),
        rules=1,
        survey=survey.data_ptr(),
        maximize=maximize,
        param_type=storage_type("params", params, counts),
        grad_type=storage_type("grads", grads, counts),
        threads=thread_count(threads),
    )
    _check_moments(moments, counts)
    table = _table(params, grads, moments, [0] * len(counts), [0] * len(counts), counts)
    arguments.tensors = ctypes.addressof(table)
    native.call("learned_optim_default_survey", arguments)
    return survey


def default_update_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    moments: Sequence[Tensor],
    cells: Sequence[Tensor] | None,
    steps: Sequence[Tensor | None],
    signals: Tensor,
    weights: Tensor,
    *,
    units: int,
    hidden: int,
    lr: float = 1.0,
    keep: float = 1.0,
    maximize: bool = False,
    threads: int | None = None,
) -> None:
    """`param <- keep * param + lr * step`, or the step alone; state in place.

    A coordinate whose step is not finite keeps its parameter and its state. autograd does not
    notice that the parameters change: the caller tells it (`increment_version`).

    Args:
        params: T of them, any shapes, contiguous, one dtype of `STORAGE` for all.
        grads: as `params`; their dtype may be another.
        moments: `(2, *param.shape)` each, float32: m and v.
        cells: `(2 * hidden, *param.shape)` each, a third dtype; None where `hidden` is 0.
        steps: where one is given, float32 with a number for each coordinate, the step goes there
            and the parameter stays.
        signals: `(M, T)`, what `Default.control` gave.
        weights: `(default_weight_count(units, hidden),)`, see `default_step_`.
        units: of the controller; tells where in `weights` the coordinates' begin.
        hidden: H.
        lr: factor on the step.
        keep: factor on the parameter.
        maximize: negate the gradients.
        threads: torch's number by default; the result does not depend on it.

    Raises:
        ValueError: for a wrong size, dtype, device or layout.
        native.Unavailable: where the kernels are not built.
    """
    counts = [param.numel() for param in params]
    if not counts:
        return
    check_float32("signals", signals, (SIGNALS, len(counts)))
    check_float32("weights", weights, (default_weight_count(units, hidden),))
    for step, count in zip(steps, counts, strict=True):
        if step is not None:
            check_float32("steps", step, (count,))
    _check_moments(moments, counts)
    cell_type, cell_pointers = 0, [0] * len(counts)
    if hidden and cells is not None:
        cell_type = storage_type("cells", cells, counts, 2 * hidden)
        cell_pointers = [cell.data_ptr() for cell in cells]
    elif hidden:
        raise ValueError(f"cells must be given where hidden > 0, which is {hidden}")
    step_pointers = [0 if step is None else step.data_ptr() for step in steps]
    before = HAND + level_count(TELLS, units, ADVICE)
    arguments = native.DefaultArguments(
        count=len(counts),
        rules=1,
        weights=weights.data_ptr() + before * weights.element_size(),
        signals=signals.data_ptr(),
        lr=lr,
        keep=keep,
        hidden=hidden,
        maximize=maximize,
        guard=True,
        param_type=storage_type("params", params, counts),
        grad_type=storage_type("grads", grads, counts),
        cell_type=cell_type,
        threads=thread_count(threads),
    )
    table = _table(params, grads, moments, cell_pointers, step_pointers, counts)
    arguments.tensors = ctypes.addressof(table)
    native.call("learned_optim_default_update", arguments)


def _check_moments(moments: Sequence[Tensor], counts: list[int]) -> None:
    if storage_type("moments", moments, counts, 2) != 0:
        raise ValueError(f"moments must be float32 but are {moments[0].dtype}")


def _table(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    moments: Sequence[Tensor],
    cells: list[int],
    steps: list[int],
    counts: list[int],
) -> ctypes.Array[ctypes.c_int64]:
    """`DefaultTensor` of src/table.h for each tensor."""
    table: list[int] = []
    for param, grad, moment, cell, step, count in zip(
        params, grads, moments, cells, steps, counts, strict=True
    ):
        pointers = grad.data_ptr(), param.data_ptr(), moment.data_ptr(), cell, step
        table += (*pointers, count, count)
    return (ctypes.c_int64 * len(table))(*table)
