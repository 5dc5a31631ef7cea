"""What the rule `default` does once a tensor, for the tensors of an optimizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learned_optim.kernels import native, structs
from learned_optim.kernels.checks import check_all_float32, check_float32, pointers
from learned_optim.kernels.default_runs import FACTS, GAUGE, SIGNALS, SUMS, default_weight_count


def default_control_(
    survey: Tensor,
    facts: Tensor,
    steps: Sequence[Tensor],
    gauges: Sequence[Tensor],
    controllers: Sequence[Tensor] | None,
    weights: Tensor,
    *,
    units: int,
    hidden: int,
    total_steps: float | None = None,
    finite: Tensor | None = None,
) -> Tensor:
    """`Default.control`; counts `steps` up, `gauges` and `controllers` in place.

    Args:
        survey: `(T, 1 + 7)`, of `DefaultTensors`; at least one tensor.
        facts: `(5, T)`, what `Default.describe` says of the tensors.
        steps: `()` each, float32: steps taken so far.
        gauges: `(6,)` each, float32: scale at the first step, pace, agreement, scale, outlook,
            largest.
        controllers: `(2 * units,)` each, float32: h then c; None where `units` is 0.
        weights: `(default_weight_count(units, hidden),)`, see `default_step_`.
        units: of the controller.
        hidden: units of the coordinates' LSTM; tells how long `weights` are.
        total_steps: None where the horizon is unknown.
        finite: `(T,)` bool, contiguous; where False a tensor keeps all three. None: all are True.

    Returns:
        The signals, `(M, T)`.

    Raises:
        ValueError: for a wrong size, dtype, device or layout.
        native.Unavailable: where the kernels are not built.
    """
    count = len(steps)
    check_float32("survey", survey, (count, 1 + SUMS))
    check_float32("facts", facts, (FACTS, count))
    check_float32("weights", weights, (default_weight_count(units, hidden),))
    check_all_float32("steps", steps, [1] * count)
    check_all_float32("gauges", gauges, [GAUGE] * count)
    if units and controllers is not None:
        check_all_float32("controllers", controllers, [2 * units] * count)
    elif units:
        raise ValueError(f"controllers must be given where units > 0, which is {units}")
    if finite is not None:
        _check_finite(finite, count)
    # torch's defaults are the user's to set; the kernel reads float32 on the CPU.
    signals = torch.empty(SIGNALS, count, dtype=torch.float32, device="cpu")
    total = None if total_steps is None else signals.new_full((count,), float(total_steps))
    tables = [pointers(tensors) for tensors in (steps, gauges, controllers or [])]
    control = structs.DefaultControlArguments(
        rules=1,
        tensors=count,
        weights=weights.data_ptr(),
        facts=facts.data_ptr(),
        total=None if total is None else total.data_ptr(),
        survey=survey.data_ptr(),
        signals=signals.data_ptr(),
        units=units,
        hidden=hidden,
    )
    kept = structs.DefaultKeptArguments(
        steps=tables[0].address,
        gauges=tables[1].address,
        cells=tables[2].address,
        finite=None if finite is None else finite.data_ptr(),
    )
    native.call("learned_optim_default_control", control, kept)
    return signals


def _check_finite(finite: Tensor, count: int) -> None:
    if (finite.dtype, tuple(finite.shape)) != (torch.bool, (count,)):
        raise ValueError(f"finite must be ({count},) bool but is {finite.shape} {finite.dtype}")
    if not finite.is_cpu or not finite.is_contiguous():
        raise ValueError(
            "finite must be contiguous on the CPU but has strides "
            f"{finite.stride()} on {finite.device}"
        )
