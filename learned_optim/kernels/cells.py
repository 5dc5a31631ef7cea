"""Stacked recurrent cells on tensors of coordinates: a step forward."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learned_optim.kernels import native, structs
from learned_optim.kernels.checks import (
    cells_arguments,
    check_float32,
    state_rows,
    thread_count,
    weight_count,
)


def cells_step_(
    grads: Tensor,
    state: Tensor,
    weights: Tensor,
    *,
    layers: int,
    hidden: int,
    p: float | None,
    cell: str = "lstm",
    scale: float = 1.0,
    threads: int | None = None,
) -> Tensor:
    """One step of N coordinates, or of P rules with N coordinates each; `state` in place.

    Args:
        grads: `(N,)` or `(P, N)`.
        state: `(S, N)` or `(P, S, N)`, overwritten: layer after layer, in each h, then c where the
            cell has it.
        weights: `(W,)`, or `(P, W)` for one rule per leading index: for each layer `w_ih (G H, F)`,
            `w_hh (G H, H)`, `b (G H)` and what else the cell has, gates in the order of
            `learned_optim.cells`; then the head's H weights and its bias.
        layers: number of stacked cells.
        hidden: H.
        p: the constant of the features `log_sign` (F = 2), or None for the raw gradient (F = 1).
        cell: a key of `checks.CELLS`.
        scale: factor on the head's output that makes the step.
        threads: torch's number by default; the result does not depend on it.

    Returns:
        The steps, shaped as `grads`.

    Raises:
        ValueError: for a wrong shape, dtype, device, layout or number.
        native.Unavailable: where the kernels are not built.
    """
    cells = cells_arguments(layers, hidden, p, cell)
    if grads.dim() not in (1, 2):
        raise ValueError(f"grads must be (N,) or (P, N) but has {tuple(grads.shape)}")
    lead, coordinates = tuple(grads.shape[:-1]), grads.shape[-1]
    size = weight_count(layers, hidden, cells.inputs, cell)
    check_float32("grads", grads, (*lead, coordinates))
    check_float32("state", state, (*lead, state_rows(layers, hidden, cell), coordinates))
    check_float32("weights", weights, (size,) if weights.dim() == 1 else (*lead, size))
    out = torch.empty_like(grads)
    arguments = structs.StepArguments(
        rules=math.prod(lead),
        coordinates=coordinates,
        grads_stride=coordinates,
        weights_stride=size if weights.dim() == 2 else 0,
        grads=grads.data_ptr(),
        weights=weights.data_ptr(),
        state=state.data_ptr(),
        out=out.data_ptr(),
        scale=scale,
        threads=thread_count(threads),
    )
    native.call("learned_optim_step", cells, arguments)
    return out
