"""Rules on the compiled kernels, where they are built; same results to rounding.

Only speed depends on this module: its functions return None where the kernels do not apply (no
compiler, another rule or device, a graph to record), and the caller goes on in plain torch. The
paper's rule has kernels for all of meta-training, `default` for what needs no graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from learned_optim import kernels
from learned_optim.rules import L2L, Coordinates, Default, State, UpdateRule, Weights


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


def summarize(
    rule: UpdateRule, coords: Coordinates, state: State, sizes: Sequence[int]
) -> Tensor | None:
    """`UpdateRule.summarize` of each of T tensors side by side without a graph, `(*lead, K, T)`."""
    if torch.is_grad_enabled() or type(rule) is not Default or not _here(coords.grad):
        return None
    sums = kernels.default_sums(
        _runs(coords.grad, 1), _runs(coords.param, 1), _runs(state["moments"], 2), sizes
    )
    return sums.view(*coords.grad.shape[:-1], *sums.shape[1:])


def update(
    rule: UpdateRule,
    weights: Weights,
    coords: Coordinates,
    state: State,
    signals: Tensor,
    sizes: Sequence[int],
    *,
    consume: bool = False,
) -> tuple[Tensor, State] | None:
    """`UpdateRule.update` of T tensors side by side without a graph: `(*lead, N)`, the new state.

    Args:
        rule: the functions.
        weights: its meta-parameters.
        coords: `(*lead, N)` each.
        state: the per-coordinate entries.
        signals: `(*lead, M, T)`.
        sizes: coordinates of each tensor.
        consume: `state` may be overwritten, and what it held is lost. That saves a copy in fresh
            memory at every step, which costs as much as the arithmetic.
    """
    if torch.is_grad_enabled() or not _here(coords.grad):
        return None
    if type(rule) is Default:
        rows = _rows(state, consume)
        steps = _default_step_(rule, weights, coords, rows, signals, sizes)
    elif type(rule) is L2L and rule.cell == "lstm":
        rows, flat = _rows(state, consume), _flatten(rule.weight_shapes(), weights)
        if flat.dim() > 1:
            flat = _for_each_run(flat, coords.grad)
        steps = kernels.lstm_step_(_runs(coords.grad, 1), rows["cell"], flat, **_numbers(rule))
    else:
        return None
    return steps.view(coords.grad.shape), {k: v.view(state[k].shape) for k, v in rows.items()}


def _rows(state: State, consume: bool) -> State:
    """The state as `(P, rows, N)`, for a kernel to overwrite."""
    rows = {key: _runs(value, 2) for key, value in state.items()}
    return rows if consume else {key: value.clone() for key, value in rows.items()}


def _default_step_(
    rule: Default,
    weights: Weights,
    coords: Coordinates,
    rows: State,
    signals: Tensor,
    sizes: Sequence[int],
) -> Tensor:
    shapes = {k: s for k, s in rule.weight_shapes().items() if k.startswith("coordinate.")}
    flat = _flatten(shapes, weights) if shapes else coords.grad.new_empty(0)
    return kernels.default_step_(
        _runs(coords.grad, 1),
        _runs(coords.param, 1),
        rows["moments"],
        rows.get("cell"),
        sizes,
        _runs(signals, 2),
        _for_each_run(flat, coords.grad),
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
        _flatten(rule.weight_shapes(), weights),
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
        _flatten(rule.weight_shapes(), weights),
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


def _flatten(shapes: dict[str, tuple[int, ...]], weights: Weights) -> Tensor:
    """`(*lead, W)`, the weights of these names in this order."""
    return torch.cat(
        [
            weights[key].detach().flatten(weights[key].dim() - len(shape))
            for key, shape in shapes.items()
        ],
        dim=-1,
    )
