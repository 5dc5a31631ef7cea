"""An optimizer's work on many tensors in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learned_optim.kernels import native, structs
from learned_optim.kernels.checks import (
    cells_arguments,
    check_all_float32,
    check_float32,
    pointers,
    state_rows,
    storage_type,
    thread_count,
    weight_count,
)


def not_finite(tensors: Sequence[Tensor], *, threads: int | None = None) -> Tensor:
    """Which tensors hold NaN or infinity: one read of the memory, no temporary.

    Args:
        tensors: T of them, any shapes, contiguous, one dtype of `STORAGE` for all.
        threads: torch's number by default.

    Returns:
        `(T,)` bool.

    Raises:
        ValueError: for a wrong dtype, device or layout.
        native.Unavailable: where the kernels are not built.
    """
    broken = torch.zeros(len(tensors), dtype=torch.bool, device="cpu")
    if not tensors:
        return broken
    counts = [tensor.numel() for tensor in tensors]
    addresses, sizes = pointers(tensors), native.Table(counts)
    arguments = structs.FiniteArguments(
        count=len(tensors),
        tensors=addresses.address,
        sizes=sizes.address,
        broken=broken.data_ptr(),
        type=storage_type("tensors", tensors, counts),
        threads=thread_count(threads),
    )
    native.call("learned_optim_finite", arguments)
    return broken


def count_up_(counters: Sequence[Tensor]) -> None:
    """Add 1 to each.

    Args:
        counters: `()` each, float32.

    Raises:
        ValueError: for a wrong size, dtype, device or layout.
        native.Unavailable: where the kernels are not built.
    """
    check_all_float32("counters", counters, [1] * len(counters))
    addresses = pointers(counters)
    arguments = structs.CountArguments(count=len(counters), numbers=addresses.address)
    native.call("learned_optim_count", arguments)


def cells_update_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[Tensor],
    weights: Tensor,
    *,
    layers: int,
    hidden: int,
    p: float | None,
    cell: str = "lstm",
    scale: float = 1.0,
    lr: float = 1.0,
    keep: float = 1.0,
    maximize: bool = False,
    threads: int | None = None,
) -> None:
    """An optimizer's step on many tensors: `param <- keep * param + lr * step`, state in place.

    A coordinate whose step is not finite keeps its parameter and its state. autograd does not
    notice that the parameters change: the caller tells it (`increment_version`).

    LSTMs of an even number of units that see features, with their states in float16, are computed
    in 16 bits where the CPU has AVX2 or AVX-512: activations are off by about 1e-4. A coordinate
    whose gradient is infinite then stays too.

    Args:
        params: any shapes, contiguous, one dtype of `STORAGE` for all.
        grads: as `params`; their dtype may be another.
        states: `(S, *param.shape)` each, rows as in `cells_step_`; a third dtype.
        weights: flat, float32, as in `cells_step_`.
        layers: number of stacked cells.
        hidden: H.
        p: as in `cells_step_`.
        cell: as in `cells_step_`.
        scale: as in `cells_step_`.
        lr: factor on the step.
        keep: factor on the parameter.
        maximize: negate the gradients.
        threads: torch's number by default; the result does not depend on it.

    Raises:
        ValueError: for a wrong size, dtype, device, layout or number.
        native.Unavailable: where the kernels are not built.
    """
    cells = cells_arguments(layers, hidden, p, cell)
    check_float32("weights", weights, (weight_count(layers, hidden, cells.inputs, cell),))
    counts = [param.numel() for param in params]
    if not counts:
        return
    param_type = storage_type("params", params, counts)
    grad_type = storage_type("grads", grads, counts)
    state_type = storage_type("states", states, counts, state_rows(layers, hidden, cell))
    columns = [[*map(Tensor.data_ptr, column)] for column in (grads, params, states)]
    tensors = native.Table(*columns, counts)
    arguments = structs.UpdateArguments(
        count=len(counts),
        tensors=tensors.address,
        weights=weights.data_ptr(),
        scale=scale,
        lr=lr,
        keep=keep,
        maximize=maximize,
        param_type=param_type,
        grad_type=grad_type,
        state_type=state_type,
        threads=thread_count(threads),
    )
    native.call("learned_optim_update", cells, arguments)
