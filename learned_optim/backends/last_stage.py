"""The stage of a rule that needs whole tensors, `UpdateRule.finish`, behind blocks and shards.

The blocks of a tensor that asks for it leave their steps here instead of moving the parameter;
once the step is whole it is finished, and moves the parameter in one piece. So a buffer as large
as the tensor lives that long, one tensor at a time.
"""

from __future__ import annotations

from torch import Tensor

from learned_optim.backends.base import Batch, free_to_read, moved, overwrite_
from learned_optim.matrices import as_matrix


class Unfinished:
    """Steps of the tensors that pass the last stage, until they are whole.

    Args:
        batch: T parameters.
        params: their coordinates, flat; written in place.
        signals: `(M, T)`.
        finite: `(T,)`, or None; see `Backend.move`.
    """

    def __init__(
        self, batch: Batch, params: list[Tensor], signals: Tensor, finite: Tensor | None
    ) -> None:
        self._batch, self._params = batch, params
        self._signals, self._finite = signals, finite
        self._steps: dict[int, Tensor] = {}
        # Coordinates without a step yet, in the order of the slots.
        self._missing = {
            index: params[index].numel()
            for index, slot in enumerate(batch.slots)
            if batch.rule.finishes(slot.shape)
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
        for slot in list(self._missing):
            if self._missing[slot]:
                return
            del self._missing[slot]
            self._move_(slot, self._steps.pop(slot, self._signals.new_empty(0)))

    def _move_(self, index: int, step: Tensor) -> None:
        batch, param = self._batch, self._params[index]
        slot = batch.slots[index]
        step = step.view(slot.param.shape)
        whole = step if slot.parts is None else slot.parts.join(step)
        whole = batch.rule.finish(whole.reshape(as_matrix(slot.shape)), self._signals[:, index])
        keep = whole.isfinite().all()
        if self._finite is not None:
            keep = keep & self._finite[index]
        whole = whole.reshape(slot.shape)
        step = whole if slot.parts is None else slot.parts.cut(whole)
        values = moved(batch, param.to(batch.compute_dtype), step.reshape(-1))
        overwrite_(param, values, None if free_to_read(keep) and bool(keep) else keep)
