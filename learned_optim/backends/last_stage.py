"""The stage of a rule that needs whole steps, `UpdateRule.complete`, behind blocks and shards.

The blocks of a tensor that asks for it leave their steps here instead of moving the parameter;
once the step is whole it is finished, part of it is deferred where the rule says so, and it moves
the parameter in one piece. So a buffer as large
as the tensor lives that long, one tensor at a time.

Small tensors of one shape whose steps are whole at the same time are finished as one stack: of
16 matrices of 16 x 16 that takes an eighth of the time (measured, one thread).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import takewhile

import torch
from torch import Tensor

from learned_optim.backends.base import Batch, free_to_read, moved, overwrite_, overwrite_all_
from learned_optim.backends.first_stage import bases_of, basis_of
from learned_optim.matrices import as_matrix
from learned_optim.rules.deferral import defer

# Numbers in a stack. Larger ones leave the cache: from 64 x 64 on there is nothing to gain.
STACKED = 1 << 14
# Takes a finite step, `deferral` included: parameter, what is owed (both in place), step, terms.
Take = Callable[[Tensor, Tensor, Tensor, Tensor], None]


class Unfinished:
    """Steps of the tensors that pass the last stage, until they are whole.

    Args:
        batch: T parameters.
        params: coordinates, flat, of at least those that pass the last stage, by the number of
            their slot; written in place.
        owed: of the same coordinates, where the rule defers part of their steps; likewise.
        signals: `(M, T)`.
        finite: `(T,)`, or None; see `Backend.move`.
        take: for backends with a kernel for it, where nothing stands against it.
    """

    def __init__(
        self,
        batch: Batch,
        params: Mapping[int, Tensor],
        owed: Mapping[int, Tensor],
        signals: Tensor,
        finite: Tensor | None,
        take: Take | None = None,
    ) -> None:
        self._take = take
        self._batch, self._params, self._owed = batch, params, owed
        self._signals, self._finite = signals, finite
        self._steps: dict[int, Tensor] = {}
        # Coordinates without a step yet, in the order of the slots.
        self._missing = {
            index: params[index].numel()
            for index, slot in enumerate(batch.slots)
            if index in params and batch.rule.waits(slot.shape)
        }

    def __contains__(self, slot: int) -> bool:
        return slot in self._missing

    def put(self, slot: int, start: int, step: Tensor) -> None:
        """The step of the coordinates from `start` on, in the compute dtype."""
        count = self._params[slot].numel()
        self._missing[slot] -= step.numel()
        if step.numel() == count:
            self._steps[slot] = step
            return
        if slot not in self._steps:
            self._steps[slot] = step.new_empty(count)
        self._steps[slot][start : start + step.numel()] = step

    def move_whole_(self) -> None:
        """Finish and move the tensors whose steps are whole; call once more after the last block.

        A tensor waits for those before it, as all processes must join their shards in one order.
        One of which this process has no coordinates takes part in that all the same.
        """
        if not self._missing:
            return
        whole = [*takewhile(lambda slot: not self._missing[slot], self._missing)]
        for slot in whole:
            del self._missing[slot]
        for alike in self._stacks(whole):
            if len(alike) == 1:
                self._move_(alike[0])
            else:
                self._move_alike_(alike)

    def _stacks(self, whole: list[int]) -> Iterator[list[int]]:
        """Slots that are finished together; those that other processes wait for alone, in order."""
        stacks: dict[tuple[int, ...], list[int]] = {}
        for index in whole:
            slot, count = self._batch.slots[index], self._params[index].numel()
            if slot.parts is not None or not 0 < 2 * count <= STACKED:
                yield [index]
                continue
            stack = stacks.setdefault(slot.shape, [])
            stack.append(index)
            if (len(stack) + 1) * count > STACKED:
                yield stacks.pop(slot.shape)
        yield from stacks.values()

    def _move_alike_(self, slots: list[int]) -> None:
        """`_move_` of whole tensors of one shape."""
        batch = self._batch
        steps = torch.stack([self._steps.pop(slot) for slot in slots])
        told = torch.stack([self._signals[:, slot] for slot in slots])
        matrices = steps.view(len(slots), *as_matrix(batch.slots[slots[0]].shape))
        alike = [batch.slots[slot] for slot in slots]
        basis = bases_of(alike) if batch.rule.has_basis(alike[0].shape) else None
        steps = batch.rule.complete(matrices, told, basis).view(len(slots), -1)
        keep = steps.isfinite().all(dim=1)
        if self._finite is not None:
            keep = keep & torch.stack([self._finite[slot] for slot in slots])
        kept = None if free_to_read(keep) and bool(keep.all()) else keep
        if batch.rule.owing is not None:
            rows = [self._owed[slot] for slot in slots]
            owed = torch.stack(rows).to(batch.compute_dtype)
            steps, owed = defer(steps, owed, told[:, -2:, None])
            overwrite_all_(rows, owed, kept)
        params = [self._params[slot] for slot in slots]
        values = moved(batch, torch.stack(params).to(batch.compute_dtype), steps)
        overwrite_all_(params, values, kept)

    def _move_(self, index: int) -> None:
        batch, param = self._batch, self._params[index]
        slot = batch.slots[index]
        step = self._steps.pop(index, self._signals.new_empty(0)).view(slot.param.shape)
        whole = step if slot.parts is None else slot.parts.join(step)
        told, matrix = self._signals[:, index], whole.reshape(as_matrix(slot.shape))
        # As a matrix, not as a stack of one, whose products take a quarter longer.
        basis = basis_of(slot) if batch.rule.has_basis(slot.shape) else None
        whole = batch.rule.complete(matrix, told, basis)
        # A tenth of what isfinite takes: an extreme is infinite or NaN if any number is.
        extremes = torch.stack(whole.aminmax()) if whole.numel() else whole
        keep = extremes.isfinite().all()
        if self._finite is not None:
            keep = keep & self._finite[index]
        whole = whole.reshape(slot.shape)
        step = (whole if slot.parts is None else slot.parts.cut(whole)).reshape(-1)
        kept = None if free_to_read(keep) and bool(keep) else keep
        owed, terms = self._owed.get(index), told[-2:]
        if kept is None and owed is not None and self._take is not None:
            self._take(param, owed, step, terms)
        else:
            take_(batch, param, owed, step, terms, kept)


def take_(
    batch: Batch,
    param: Tensor,
    owed: Tensor | None,
    step: Tensor,
    terms: Tensor,
    keep: Tensor | None,
) -> None:
    """Take part of a step, in place, and what falls due of those before.

    Args:
        batch: of the parameter.
        param: `(N,)`.
        owed: of the same coordinates; None where nothing is deferred.
        step: the whole step, in the compute dtype.
        terms: of `defer`, `(2,)`.
        keep: where it is taken, `(N,)` or `()`; None: everywhere.
    """
    if keep is None and _in_place(batch, param, owed):
        _take_(batch, param, owed, step, terms)
        return
    if owed is not None:
        step, left = defer(step, owed.to(batch.compute_dtype), terms[:, None])
        overwrite_(owed, left, keep)
    overwrite_(param, moved(batch, param.to(batch.compute_dtype), step), keep)


def _in_place(batch: Batch, param: Tensor, owed: Tensor | None) -> bool:
    """Whether nothing is to convert, and numbers are at hand."""
    alike = owed is None or owed.dtype == batch.compute_dtype
    return alike and param.dtype == batch.compute_dtype and isinstance(batch.lr, float)


def _take_(batch: Batch, param: Tensor, owed: Tensor | None, step: Tensor, terms: Tensor) -> None:
    """`take_` of all of it, without temporaries and in half of the passes over the memory.

    For a batch whose `lr` is a number.
    """
    lr = float(batch.lr)
    if batch.decay:
        param.mul_(1 - lr * batch.decay)
    if owed is None:
        param.add_(step, alpha=lr)
        return
    share, due = terms.tolist()
    owed.add_(step)
    param.add_(step, alpha=lr * (1 - share)).add_(owed, alpha=lr * share * due)
    owed.mul_(1 - due)
