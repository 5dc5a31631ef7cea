"""Batches to move by one backend and by another: every size, layout and dtype that is awkward."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from learned_optim.backends import Backend, Batch, Slot
from learned_optim.rules import UpdateRule, Weights

SIZES = [(0,), (), (1,), (3,), (63,), (64,), (65,), (5, 13), (2, 0, 3), (300,)]
CPU = torch.device("cpu")


def louder(weights: Weights) -> Weights:
    """With heads of full size: drawn ones are next to nothing or zero, which hides mistakes."""
    generator = torch.Generator().manual_seed(11)
    heads = [key for key in weights if "head" in key]
    drawn = {key: torch.randn(weights[key].shape, generator=generator) for key in heads}
    return weights | {key: value * weights[key].shape[-1] ** -0.5 for key, value in drawn.items()}


def make(
    rule: UpdateRule,
    sizes: list[tuple[int, ...]] = SIZES,
    dtype: torch.dtype = torch.float32,
    weights: Weights | None = None,
    device: torch.device = CPU,
    compute: torch.dtype = torch.float32,
    **options: object,
) -> Batch:
    """Random parameters, gradients over six orders of magnitude, and a state that is not zero."""
    generator, seen = (torch.Generator().manual_seed(seed) for seed in (5, 6))
    weights = weights or louder(rule.init_weights(generator))
    slots = []
    for shape in sizes:
        param, grad, spread = (torch.randn(shape, generator=generator) for _ in range(3))
        grad = grad * 10 ** (2 * spread - 3)
        state = rule.init_state(param)
        for value in state.values():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
        if "moments" in state:
            state["moments"][1].square_()
        if "gauge" in state:
            state["gauge"][[0, 3, 5]] = state["gauge"][[0, 3, 5]].abs()
            state["gauge"][5] *= 1e4  # where some gradients are rounding
            state["gauge"][4] /= 2  # where the pace falls at a part of its rate
            state["gauge"][1] = 2 * torch.rand((), generator=generator) - 0.5  # some paces are high
        step = torch.tensor(12.0)  # late enough for gradients to be clipped
        slot = Slot(param.to(dtype), grad.to(dtype), state, step, tuple(shape))
        if "gauge" in state and len(slots) % 2:  # as if the gradient were seen in a basis
            slot.plain = torch.randn(shape, generator=seen).to(dtype)
        slots.append(slot)
    settings = {"lr": 0.7, "decay": 0.0, "maximize": False, "total_steps": None} | options
    batch = Batch(rule, weights, slots, device=CPU, compute_dtype=torch.float32, **settings)  # type: ignore[arg-type]
    return moved_to(batch, device, compute)


def moved_to(batch: Batch, device: torch.device, compute: torch.dtype = torch.float32) -> Batch:
    """A copy on another device; with `compute` float64 all of it is float64."""
    other = copy.deepcopy(batch)
    wide = compute == torch.float64

    def to(tensor: Tensor) -> Tensor:
        return tensor.to(device, compute if wide else tensor.dtype)

    other.device, other.compute_dtype = device, compute
    other.weights = {key: to(value) for key, value in batch.weights.items()}
    if isinstance(batch.lr, Tensor):
        other.lr = to(batch.lr)
    for slot in other.slots:
        slot.param, slot.grad, slot.step = to(slot.param), to(slot.grad), to(slot.step)
        slot.plain = None if slot.plain is None else to(slot.plain)
        slot.state = {key: to(value) for key, value in slot.state.items()}
    return other


def step_(backend: Backend, batch: Batch, finite: Tensor | None = None) -> Batch:
    """A whole step, in place; returns the batch."""
    rows = backend.survey(batch)
    backend.move(batch, backend.control(batch, rows, finite), finite)
    return batch


def worst(got: Batch, wanted: Batch) -> dict[str, float]:
    """Largest difference of the parameters, and of each entry of the state, over all tensors.

    Relative to the largest number in the entry of that tensor, where that is above 1.
    """
    found: dict[str, float] = {}
    for ours, theirs in zip(got.slots, wanted.slots, strict=True):
        pairs = {"param": (ours.param, theirs.param)}
        pairs |= {key: (ours.state[key], theirs.state[key]) for key in theirs.state}
        for key, (a, b) in pairs.items():
            if not b.numel():
                continue
            a, b = a.double().cpu(), b.double().cpu()
            assert torch.equal(a.isnan(), b.isnan()), key
            apart = float((a - b).nan_to_num().abs().max())
            found[key] = max(
                found.get(key, 0.0), apart / max(1.0, float(b.nan_to_num().abs().max()))
            )
    assert all(map(math.isfinite, found.values()))
    return found
