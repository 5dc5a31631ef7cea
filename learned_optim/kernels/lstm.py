"""The coordinatewise LSTM's kernels on tensors: a step back, many back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learned_optim.kernels import native, structs
from learned_optim.kernels.checks import (
    cells_arguments,
    check_float32,
    thread_count,
    weight_count,
)


def lstm_bptt(
    grads: Tensor,
    state: Tensor,
    cotangents: Tensor,
    weights: Tensor,
    *,
    layers: int,
    hidden: int,
    p: float | None,
    scale: float = 1.0,
    threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradient of `sum(cotangents * steps)` with respect to the weights, through T steps.

    `steps[t]` is what `cells_step_` gives for `grads[t]`, starting from `state`. The gradients are
    constants and the first state too (truncation), which is what makes coordinates independent.

    Args:
        grads: `(T, N)`, the coordinates' gradients at each step.
        state: `(S, N)`, S = 2 * layers * hidden, before the first step: layer after layer, in
            each h then c.
        cotangents: `(T, N)`, the derivative of the meta-loss by each step.
        weights: flat, for each layer `w_ih (4H, F)`, `w_hh (4H, H)`, `b (4H)` with the gates in
            the order i, f, o, g; then the head's H weights and its bias.
        layers: number of stacked cells.
        hidden: H.
        p: the constant of the features `log_sign` (F = 2), or None for the raw gradient (F = 1).
        scale: factor on the head's output that makes the step.
        threads: torch's number by default; the result does not depend on it.

    Returns:
        The gradient, flat as `weights`, and the state `(S, N)` after the last step.

    Raises:
        ValueError: for a wrong shape, dtype, device, layout or number.
        native.Unavailable: where the kernels are not built.

    Example:
        >>> names = rule.weight_shapes()  # a rules.l2l.L2L with cell="lstm"
        >>> flat = torch.cat([weights[name].reshape(-1) for name in names])
        >>> flat_grad, state = lstm_bptt(
        ...     grads, state, cotangents, flat, layers=2, hidden=20, p=10.0, scale=0.1
        ... )
        >>> parts = flat_grad.split([math.prod(shape) for shape in names.values()])
    """
    cells = cells_arguments(layers, hidden, p)
    if grads.dim() != 2 or 0 in grads.shape:
        raise ValueError(f"grads must be (T, N) with T, N > 0 but has {tuple(grads.shape)}")
    steps, coordinates = grads.shape
    check_float32("grads", grads, (steps, coordinates))
    check_float32("cotangents", cotangents, (steps, coordinates))
    check_float32("state", state, (2 * layers * hidden, coordinates))
    check_float32("weights", weights, (weight_count(layers, hidden, cells.inputs),))
    weight_grads, last_state = torch.empty_like(weights), torch.empty_like(state)
    arguments = structs.BpttArguments(
        steps=steps,
        coordinates=coordinates,
        grads=grads.data_ptr(),
        state=state.data_ptr(),
        cotangents=cotangents.data_ptr(),
        weights=weights.data_ptr(),
        last_state=last_state.data_ptr(),
        weight_grads=weight_grads.data_ptr(),
        scale=scale,
        threads=thread_count(threads),
    )
    native.call("learned_optim_bptt", cells, arguments)
    return weight_grads, last_state


def lstm_vjp(
    grads: Tensor,
    state: Tensor,
    step_cotangents: Tensor,
    state_cotangents: Tensor,
    weights: Tensor,
    *,
    layers: int,
    hidden: int,
    p: float | None,
    scale: float = 1.0,
    widths: Tensor | None = None,
    threads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Vector-Jacobian product of one step with respect to the weights, gradients and state.

    With `step, state_after` what `cells_step_` gives, the gradient of
    `sum(step_cotangents * step) + sum(state_cotangents * state_after)`. For a meta-gradient that
    also flows back through the optimizee's gradients, where the steps must be taken one by one.

    The features' derivative is that of `features.log_sign` under autograd: `1 / (p g)` and 0
    where `|g| >= e^-p`, else 0 and `e^p`; so it is finite at `g = 0`.

    Args:
        grads: `(N,)` or `(P, N)`; all P * N coordinates share the weights.
        state: `(S, N)` or `(P, S, N)`, before the step; layout as in `lstm_bptt`.
        step_cotangents: as `grads`, the derivative by the step.
        state_cotangents: as `state`, the derivative by the state after the step.
        weights: flat as in `lstm_bptt`.
        layers: number of stacked cells.
        hidden: H.
        p: as in `lstm_bptt`.
        scale: as in `lstm_bptt`.
        widths: as `grads`, positive; the features' derivative is then that of
            `features.log_sign_smoothed`.
        threads: torch's number by default; the result does not depend on it.

    Returns:
        The gradients by the weights, flat, summed over all coordinates; by `grads`; and by
        `state`.

    Raises:
        ValueError: for a wrong shape, dtype, device, layout or number.
        native.Unavailable: where the kernels are not built.
    """
    cells = cells_arguments(layers, hidden, p)
    if grads.dim() not in (1, 2) or 0 in grads.shape:
        raise ValueError(f"grads must be (N,) or (P, N) with P, N > 0 but has {tuple(grads.shape)}")
    lead, coordinates = tuple(grads.shape[:-1]), grads.shape[-1]
    rows = (*lead, 2 * layers * hidden, coordinates)
    check_float32("grads", grads, (*lead, coordinates))
    check_float32("state", state, rows)
    check_float32("step_cotangents", step_cotangents, (*lead, coordinates))
    check_float32("state_cotangents", state_cotangents, rows)
    check_float32("weights", weights, (weight_count(layers, hidden, cells.inputs),))
    if widths is not None:
        check_float32("widths", widths, (*lead, coordinates))
    found = torch.empty_like(weights), torch.empty_like(grads), torch.empty_like(state)
    weight_grads, grad_cotangents, state_cotangents_before = found
    arguments = structs.VjpArguments(
        leads=math.prod(lead),
        coordinates=coordinates,
        grads=grads.data_ptr(),
        state=state.data_ptr(),
        step_cotangents=step_cotangents.data_ptr(),
        state_cotangents=state_cotangents.data_ptr(),
        weights=weights.data_ptr(),
        widths=None if widths is None else widths.data_ptr(),
        weight_grads=weight_grads.data_ptr(),
        grad_cotangents=grad_cotangents.data_ptr(),
        state_cotangents_before=state_cotangents_before.data_ptr(),
        scale=scale,
        threads=thread_count(threads),
    )
    native.call("learned_optim_vjp", cells, arguments)
    return found
