"""The paper's rule on the compiled kernels, where they are built; same results to rounding.

Only speed depends on this module: both functions return None where the kernels do not apply (no
compiler, another rule or device, a graph to record), and the caller goes on in plain torch.
"""

from __future__ import annotations

import math
from typing import TypedDict

import torch
from torch import Tensor

from learned_optim import kernels
from learned_optim.rules import L2L, State, UpdateRule, Weights


def applies(rule: UpdateRule, like: Tensor) -> bool:
    """Whether `rule` on tensors such as `like` has a kernel here."""
    return (
        # Not isinstance: a subclass computes something else.
        type(rule) is L2L
        and rule.cell == "lstm"
        and like.dtype == torch.float32
        and like.device.type == "cpu"
        and like.numel() > 0
        and kernels.available()
    )


def step(
    rule: UpdateRule, weights: Weights, grad: Tensor, state: State
) -> tuple[Tensor, State] | None:
    """`UpdateRule.update` without a graph: `(*lead, N)`, `(*lead, S, N)`."""
    if torch.is_grad_enabled() or type(rule) is not L2L or not applies(rule, grad):
        return None
    lead = grad.shape[:-1]
    flat = _flatten(rule, weights)
    if flat.dim() > 1:
        flat = flat.expand(*lead, -1).reshape(-1, flat.shape[-1]).contiguous()
    rows = state["cell"].reshape(-1, *state["cell"].shape[-2:]).clone()
    steps = kernels.lstm_step_(
        grad.reshape(-1, grad.shape[-1]).contiguous(), rows, flat, **_numbers(rule)
    )
    return steps.view(grad.shape), {"cell": rows.view(state["cell"].shape)}


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


def _flatten(rule: L2L, weights: Weights) -> Tensor:
    """`(*lead, W)` in the order of `weight_shapes`."""
    return torch.cat(
        [
            weights[key].detach().flatten(weights[key].dim() - len(shape))
            for key, shape in rule.weight_shapes().items()
        ],
        dim=-1,
    )
