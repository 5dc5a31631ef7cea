"""Rules on the compiled kernels, where they are built; same results to rounding.

Only speed depends on this module: its functions return None where the kernels do not apply (no
compiler, another rule or device, a graph to record), and the caller goes on in plain torch. The
paper's rule has kernels for all of meta-training with LSTM cells; with others, and `default`, for
what needs no graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from learned_optim import kernels
from learned_optim.rules import L2L, Clock, Coordinates, Default, State, UpdateRule, Weights


def applies(rule: UpdateRule, like: Tensor) -> bool:
    """Whether `rule` on tensors such as `like` has kernels for steps and gradients here."""
    # Not isinstance: a subclass computes something else.
    return type(rule) is L2L and rule.cell == "lstm" and _here(like)


def _here(like: Tensor) -> bool:
    """Whether kernels can read such tensors."""
    return (
        like.dtype == torch.float32
        and like.device.type == "cpu"
        and like.numel() > 0
        and kernels.available()
    )


def move(
    rule: UpdateRule,
    weights: Weights,
    coords: Coordinates,
    state: State,
    clock: Clock,
    facts: Tensor,
    sizes: Sequence[int],
    *,
    consume: bool = False,
) -> tuple[Tensor, Tensor, State] | None:
    """A step of T tensors side by side, without a graph and but for the rule's `finish`.

    Args:
        rule: the functions.
        weights: its meta-parameters.
        coords: `(*lead, N)` each.
        state: all entries.
        clock: the time.
        facts: `(D, T)`, what the rule's `describe` says of the tensors.
        sizes: coordinates of each of them.
        consume: `state` may be overwritten, and what it held is lost. That saves a copy in fresh
            memory at every step, which costs as much as the arithmetic.

    Returns:
        The step `(*lead, N)`, the signals `(*lead, M, T)` and the new state.
    """
    if torch.is_grad_enabled() or not _here(coords.grad):
        return None
    if type(rule) is Default:
        rows = _rows(state, consume)
        steps, signals = _default_step_(rule, weights, coords, rows, clock, facts, sizes)
        signals = signals.view(*coords.grad.shape[:-1], *signals.shape[1:])
    elif type(rule) is L2L:
        rows, flat = _rows(state, consume), _flatten(rule, weights)
        if flat.dim() > 1:
            flat = _for_each_run(flat, coords.grad)
        steps = kernels.cells_step_(
            _runs(coords.grad, 1), rows["cell"], flat, cell=rule.cell, **_numbers(rule)
        )
        signals = steps.new_zeros(0, 1)
    else:
        return None
    new_state = {key: value.view(state[key].shape) for key, value in rows.items()}
    return steps.view(coords.grad.shape), signals, new_state


def _rows(state: State, consume: bool) -> State:
    """The state as `(P, rows, columns)`, for a kernel to overwrite."""
    rows = {key: _runs(value, 2) for key, value in state.items()}
    return rows if consume else {key: value.clone() for key, value in rows.items()}


def _default_step_(
    rule: Default,
    weights: Weights,
    coords: Coordinates,
    rows: State,
    clock: Clock,
    facts: Tensor,
    sizes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    grads = _runs(coords.grad, 1)
    plain = grads if coords.plain is None else _runs(coords.plain, 1)
    cell = rows.get("cell", grads.new_empty(len(grads), 0, grads.shape[1]))
    controller = rows.get("controller", grads.new_empty(len(grads), 0, len(sizes)))
    return kernels.default_step_(
        grads,
        plain,
        _runs(coords.param, 1),
        kernels.DefaultState(rows["moments"], cell, rows["gauge"], controller),
        _for_each_run(_flatten(rule, weights), coords.grad),
        sizes=sizes,
        facts=facts.contiguous(),
        step=clock.step,
        total_steps=clock.total_steps,
        units=rule.controller,
        hidden=rule.hidden,
    )


def _runs(tensor: Tensor, keep: int) -> Tensor:
    """`(*lead, *kept)` -> `(P, *kept)`, contiguous; a view where it can be."""
    lead, kept = tensor.shape[: tensor.dim() - keep], tensor.shape[tensor.dim() - keep :]
    return tensor.reshape(math.prod(lead), *kept).contiguous()


def _for_each_run(flat: Tensor, grad: Tensor) -> Tensor:
    """Weights `(W,)` or of any of the leading dimensions of `grad` -> `(P, W)`."""
    return _runs(flat.expand(*grad.shape[:-1], -1), 1)


def vjp(
    rule: UpdateRule, weights: Weights, grads: Tensor, state: State, cotangents: Tensor
) -> Weights | None:
    """Gradient of `sum(cotangents * steps)`: `(T, *lead, N)`, one set of weights for all."""
    if type(rule) is not L2L or not applies(rule, grads):
        return None
    flat_grad, _ = kernels.lstm_bptt(
        grads.flatten(1).contiguous(),
        state["cell"].movedim(-2, 0).flatten(1).contiguous(),
        cotangents.flatten(1).contiguous(),
        _flatten(rule, weights),
        **_numbers(rule),
    )
    return _named(rule, flat_grad)


def step_vjp(
    rule: UpdateRule,
    weights: Weights,
    grad: Tensor,
    state: State,
    step_bar: Tensor,
    state_bar: State,
    widths: Tensor | None = None,
) -> tuple[Weights, Tensor, State] | None:
    """VJP of one step: cotangents of weights, gradient `(R, N)` and state `(R, S, N)`."""
    if type(rule) is not L2L or not applies(rule, grad):
        return None
    flat_bar, grad_bar, rows_bar = kernels.lstm_vjp(
        grad.contiguous(),
        state["cell"].contiguous(),
        step_bar.contiguous(),
        state_bar["cell"].contiguous(),
        _flatten(rule, weights),
        widths=widths,
        **_numbers(rule),
    )
    return _named(rule, flat_bar), grad_bar, {"cell": rows_bar}


def _named(rule: L2L, flat: Tensor) -> Weights:
    shapes = rule.weight_shapes()
    parts = flat.split([math.prod(shape) for shape in shapes.values()])
    return {key: part.view(shapes[key]) for key, part in zip(shapes, parts, strict=True)}


class _Numbers(TypedDict):
    layers: int
    hidden: int
    p: float | None
    scale: float


def _numbers(rule: L2L) -> _Numbers:
    p = rule.p if rule.preprocess == "log_sign" else None
    return {"layers": rule.layers, "hidden": rule.hidden, "p": p, "scale": rule.scale}


def _flatten(rule: UpdateRule, weights: Weights) -> Tensor:
    """`(*lead, W)` in the order of `weight_shapes`."""
    return torch.cat(
        [
            weights[key].detach().flatten(weights[key].dim() - len(shape))
            for key, shape in rule.weight_shapes().items()
        ],
        dim=-1,
    )
