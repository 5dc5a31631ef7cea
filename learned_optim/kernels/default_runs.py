"""A step of the rule `default` in meta-training: many runs in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from learned_optim.kernels import native, structs
from learned_optim.kernels.checks import check_float32, thread_count

# Sizes in rules.default and rules.hand: SUMS, SIGNALS, FACTS, rows of the gauge and of the moments;
# constants of the hand rule; inputs and outputs of the controller's and of the coordinates' LSTM.
SUMS, SIGNALS, FACTS, GAUGE = 7, 14, 5, 6
MOMENTS, HAND = 3, 23
TELLS, ADVICE = 12, 5
INPUTS, BENDS = 6, 3
MAX_UNITS, MAX_HIDDEN = 128, 64


def default_weight_count(units: int, hidden: int) -> int:
    """Length of the flat weights: the hand rule's, the controller's, the coordinates'."""
    return HAND + level_count(TELLS, units, ADVICE) + level_count(INPUTS, hidden, BENDS)


def level_count(inputs: int, units: int, outputs: int) -> int:
    """An LSTM and its head; none where it has no units."""
    return 4 * units * (inputs + units + 1) + outputs * (units + 1) if units else 0


class DefaultState(NamedTuple):
    """The rule's state of P runs, each with N coordinates in T tensors; float32, contiguous.

    Attributes:
        moments: `(P, 3, N)`: m, v and what is owed, which stays as it is.
        cell: `(P, 2 * hidden, N)`: h then c of the coordinates.
        gauge: `(P, 6, T)`: scale at the first step, pace, agreement, scale, outlook, largest.
        controller: `(P, 2 * units, T)`: h then c of the tensors.
    """

    moments: Tensor
    cell: Tensor
    gauge: Tensor
    controller: Tensor


def default_step_(
    grads: Tensor,
    plain: Tensor,
    params: Tensor,
    state: DefaultState,
    weights: Tensor,
    *,
    sizes: Sequence[int],
    facts: Tensor,
    step: Tensor,
    total_steps: Tensor | None = None,
    units: int,
    hidden: int,
    threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`summarize`, `control` and `update` of `rules.default.Default`; `state` in place.

    Sums are added up in float32 over at most 128 numbers a lane, then in float64 in a fixed order.

    Args:
        grads: `(P, N)`, as the rule sees them.
        plain: `(P, N)`, the same in no basis.
        params: `(P, N)`.
        state: overwritten.
        weights: `(P, default_weight_count(units, hidden))`, in the order of
            `Default.weight_shapes`; gates in the order i, f, o, g.
        sizes: coordinates of each of the T tensors; their sum is N.
        facts: `(5, T)`, what `Default.describe` says of them.
        step: `(T,)`, the number of this step.
        total_steps: `(T,)`, or None where the horizon is unknown.
        units: of the controller, 0 to 128.
        hidden: units of the coordinates' LSTM, 0 to 64.
        threads: torch's number by default; the result does not depend on it.

    Returns:
        The steps, `(P, N)`, before the matrix stage and whole, and the signals, `(P, M, T)`.

    Raises:
        ValueError: for a wrong shape, dtype, device, layout or number.
        native.Unavailable: where the kernels are not built.
    """
    _check(grads, plain, params, state, weights, sizes, units, hidden)
    runs, tensors = grads.shape[0], len(sizes)
    check_float32("facts", facts, (FACTS, tensors))
    check_float32("step", step, (tensors,))
    if total_steps is not None:
        check_float32("total_steps", total_steps, (tensors,))
    steps, sizes_array = (
        torch.empty_like(grads),
        torch.tensor(sizes, dtype=torch.int64, device="cpu"),
    )
    survey = grads.new_empty((runs, tensors, 1 + SUMS))
    signals = grads.new_empty((runs, SIGNALS, tensors))
    control = structs.DefaultControlArguments(
        rules=runs,
        tensors=tensors,
        weights=weights.data_ptr(),
        facts=facts.data_ptr(),
        step=step.data_ptr(),
        total=None if total_steps is None else total_steps.data_ptr(),
        survey=survey.data_ptr(),
        gauge=state.gauge.data_ptr(),
        cell=state.controller.data_ptr(),
        signals=signals.data_ptr(),
        units=units,
        hidden=hidden,
    )
    arguments = structs.DefaultRunsArguments(
        sizes=sizes_array.data_ptr(),
        grads=grads.data_ptr(),
        plain=plain.data_ptr(),
        params=params.data_ptr(),
        moments=state.moments.data_ptr(),
        cell=state.cell.data_ptr(),
        steps=steps.data_ptr(),
        coordinates=grads.shape[1],
        threads=thread_count(threads),
    )
    native.call("learned_optim_default_runs", control, arguments)
    return steps, signals


def _check(
    grads: Tensor,
    plain: Tensor,
    params: Tensor,
    state: DefaultState,
    weights: Tensor,
    sizes: Sequence[int],
    units: int,
    hidden: int,
) -> None:
    for name, value, high in (("units", units, MAX_UNITS), ("hidden", hidden, MAX_HIDDEN)):
        if not 0 <= value <= high:
            raise ValueError(f"{name} must be in [0, {high}] but is {value}")
    if grads.dim() != 2:
        raise ValueError(f"grads must be (P, N) but has {tuple(grads.shape)}")
    runs, coordinates = grads.shape
    if sum(sizes) != coordinates or any(size < 0 for size in sizes):
        raise ValueError(f"sizes must add up to {coordinates} but are {list(sizes)}")
    check_float32("grads", grads, (runs, coordinates))
    check_float32("plain", plain, (runs, coordinates))
    check_float32("params", params, (runs, coordinates))
    check_float32("moments", state.moments, (runs, MOMENTS, coordinates))
    check_float32("cell", state.cell, (runs, 2 * hidden, coordinates))
    check_float32("gauge", state.gauge, (runs, GAUGE, len(sizes)))
    check_float32("controller", state.controller, (runs, 2 * units, len(sizes)))
    check_float32("weights", weights, (runs, default_weight_count(units, hidden)))
