"""The rule `default` on the CPU's kernels: two passes over the memory, matrices finished behind.

Steps of matrices wait for the matrix stage in buffers of at most `WAITING` numbers together, or of
one tensor: so many tensors share a call, and few megabytes are in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from learned_optim import kernels
from learned_optim.backends import cpu_matrices
from learned_optim.backends.base import Batch, facts, plain_grads
from learned_optim.backends.copies import contiguous, mark_written, readable, write_back_
from learned_optim.backends.last_stage import Unfinished
from learned_optim.rules.default import OWED, Default

WAITING = 1 << 19


class Prepared:
    """The tensors of a batch where the kernels can have them, for all of a step.

    Args:
        rule: the batch's.
        batch: T parameters.
    """

    def __init__(self, rule: Default, batch: Batch) -> None:
        slots, keys = batch.slots, rule.keys_per("coordinate")
        self.params = [slot.param for slot in slots]
        kept = [[slot.state[key] for slot in slots] for key in keys]
        self._entries = [self.params, *kept]
        plains = plain_grads(slots)
        # Copies stand in for what is not contiguous.
        self.rows = [readable(self.params), *map(contiguous, kept)]
        self.tensors = kernels.DefaultTensors(
            self.rows[0],
            readable([slot.grad for slot in slots]),
            self.rows[1],
            self.rows[2] if rule.hidden else None,
            hidden=rule.hidden,
            plains=None if plains is None else readable(plains),
            maximize=batch.maximize,
        )

    def write_back_(self) -> None:
        """After the last change."""
        mark_written(self.params)
        for entry, copies in zip(self._entries, self.rows, strict=True):
            write_back_(entry, copies)


def control(
    rule: Default, batch: Batch, found: Tensor, weights: Tensor, finite: Tensor | None
) -> Tensor:
    """See `Backend.control`; `found` by the survey, `weights` the rule's in one row."""
    slots = batch.slots
    kept = [slot.state["controller"] for slot in slots] if rule.controller else []
    cells = contiguous(kept)
    signals = kernels.default_control_(
        found.contiguous(),
        facts(batch),
        [slot.step for slot in slots],
        [slot.state["gauge"] for slot in slots],
        cells if rule.controller else None,
        weights,
        units=rule.controller,
        hidden=rule.hidden,
        total_steps=batch.total_steps,
        finite=finite,
    )
    write_back_(kept, cells)
    return signals


def move(
    rule: Default,
    batch: Batch,
    prepared: Prepared,
    signals: Tensor,
    weights: Tensor,
    finite: Tensor | None,
) -> None:
    """See `Backend.move`; `weights` the rule's in one row."""
    slots, params, lr = batch.slots, prepared.rows[0], float(batch.lr)
    sits_out = [] if finite is None else finite.logical_not().nonzero().flatten().tolist()
    waiting = {i: params[i].view(-1) for i, slot in enumerate(slots) if rule.waits(slot.shape)}
    owed = {i: prepared.rows[1][i][OWED].view(-1) for i in waiting}
    mine = {i for i in waiting if cpu_matrices.finishes(slots[i])}
    late = {i: param for i, param in waiting.items() if i not in mine}
    unfinished = Unfinished(batch, late, owed, signals, finite, take=partial(_take_, batch))
    for group in _groups(len(slots), waiting):
        # Whole steps only: one that sits out goes to the last stage all the same, as zero.
        steps = {
            i: torch.empty(len(waiting[i]), dtype=torch.float32, device="cpu")
            for i in group
            if i in waiting
        }
        for i in sits_out:
            if i in steps:
                steps[i].zero_()
        prepared.tensors.update_(
            signals,
            weights,
            units=rule.controller,
            moving=[i for i in group if i not in sits_out] if sits_out else group,
            steps=steps,
            lr=lr,
            keep=1.0 - lr * batch.decay,
        )
        whole = {i: step for i, step in steps.items() if i in mine and i not in sits_out}
        cpu_matrices.move_(batch, whole, params, owed, signals)
        for index, step in steps.items():
            if index in late and step.numel():
                unfinished.put(index, 0, step)
        unfinished.move_whole_()
    unfinished.move_whole_()
    prepared.write_back_()


def _take_(batch: Batch, param: Tensor, owed: Tensor, step: Tensor, terms: Tensor) -> None:
    """A finite step, in one pass over the memory; see `last_stage.Take`."""
    lr = float(batch.lr)
    share, due = terms.tolist()
    kernels.take_(
        param, owed, step.contiguous(), share=share, due=due, lr=lr, keep=1.0 - lr * batch.decay
    )


def _groups(count: int, whole: Mapping[int, Tensor]) -> Iterator[list[int]]:
    """Indices of the slots in order, cut so that few steps wait for the matrix stage."""
    group: list[int] = []
    waiting = 0
    for index in range(count):
        size = whole[index].numel() if index in whole else 0
        if group and waiting + size > WAITING:
            yield group
            group, waiting = [], 0
        group.append(index)
        waiting += size
    yield group
