"""The rule `default` on the CPU's kernels: two passes over the memory, matrices finished behind.

Steps of matrices wait for the matrix stage in buffers of at most `WAITING` numbers together, or of
one tensor: so many tensors share a call, and few megabytes are in use.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from learned_optim import kernels
from learned_optim.backends.base import Batch
from learned_optim.backends.last_stage import Unfinished
from learned_optim.rules.default import Default

WAITING = 1 << 19


def readable(grad: Tensor) -> Tensor:
    """The gradient in row-major memory that holds its very values; itself where it does."""
    return grad.contiguous().resolve_neg()


def survey(batch: Batch) -> Tensor:
    """See `Backend.survey`."""
    slots = batch.slots
    return kernels.default_survey(
        [slot.param.contiguous() for slot in slots],
        [readable(slot.grad) for slot in slots],
        [slot.state["moments"].contiguous() for slot in slots],
        maximize=batch.maximize,
    )


def move(rule: Default, batch: Batch, signals: Tensor, finite: Tensor | None) -> None:
    """See `Backend.move`."""
    params = [slot.param.contiguous() for slot in batch.slots]
    # Copies stand in for what is not contiguous; a tensor is its own otherwise.
    keys = rule.keys_per("coordinate")
    states = [{key: slot.state[key].contiguous() for key in keys} for slot in batch.slots]
    sits_out = [False] * len(params) if finite is None else (~finite).tolist()
    unfinished = Unfinished(batch, [param.view(-1) for param in params], signals, finite)
    weights = torch.cat([batch.weights[key].reshape(-1) for key in rule.weight_shapes()])
    for group in _groups(rule, batch):
        steps = {
            # Whole steps only: one that sits out goes to the last stage all the same, as zero.
            i: (torch.zeros if sits_out[i] else torch.empty)(params[i].numel(), dtype=torch.float32)
            for i in group
            if rule.finishes(batch.slots[i].shape)
        }
        moving = [i for i in group if not sits_out[i]]
        _update_(rule, batch, signals, weights, moving, params, states, steps)
        for index, step in steps.items():
            if step.numel():
                unfinished.put(index, 0, step)
        unfinished.move_whole_()
    unfinished.move_whole_()
    for slot, param, state in zip(batch.slots, params, states, strict=True):
        if param is not slot.param:
            slot.param.copy_(param)
        elif not param.is_inference():
            # The kernel writes behind autograd's back; a later backward must notice.
            torch.autograd.graph.increment_version(param)
        for key, value in state.items():
            if value is not slot.state[key]:
                slot.state[key].copy_(value)


def _groups(rule: Default, batch: Batch) -> Iterator[list[int]]:
    """Indices of the slots in order, cut so that few steps wait for the matrix stage."""
    group: list[int] = []
    waiting = 0
    for index, slot in enumerate(batch.slots):
        count = slot.param.numel() if rule.finishes(slot.shape) else 0
        if group and waiting + count > WAITING:
            yield group
            group, waiting = [], 0
        group.append(index)
        waiting += count
    yield group


def _update_(
    rule: Default,
    batch: Batch,
    signals: Tensor,
    weights: Tensor,
    moving: list[int],
    params: list[Tensor],
    states: list[dict[str, Tensor]],
    steps: dict[int, Tensor],
) -> None:
    """One call of the kernel, for the slots of these indices."""
    lr = float(batch.lr)
    kernels.default_update_(
        [params[i] for i in moving],
        [readable(batch.slots[i].grad) for i in moving],
        [states[i]["moments"] for i in moving],
        [states[i]["cell"] for i in moving] if rule.hidden else None,
        [steps.get(i) for i in moving],
        signals[:, moving].contiguous(),
        weights,
        units=rule.controller,
        hidden=rule.hidden,
        lr=lr,
        keep=1.0 - lr * batch.decay,
        maximize=batch.maximize,
    )
