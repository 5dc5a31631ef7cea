"""The matrix stage on the CPU's kernels: many small matrices in one call, large ones one by one.

What `first_stage` and `last_stage` do in some thirty of torch's operations a matrix, each of which
costs more than its arithmetic where a matrix is small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from learned_optim import bases, kernels
from learned_optim.backends.base import Batch, Slot
from learned_optim.backends.copies import contiguous, readable, write_back_
from learned_optim.matrices import QUINTICS, as_matrix, in_bfloat16, iterate
from learned_optim.rules.default import DEAD, SIGNALS
from learned_optim.rules.ranges import tiny

# Rows, or columns, and numbers of a matrix without a basis up to which torch's products, faster
# for large ones, do not make up for the cost of calling them.
SHORTEST, SMALL = 64, 1 << 14
# Of steps, parameters and what is owed, and the signals, of some slots.
Kernel = Callable[[Batch, list[Slot], list[list[Tensor]], Tensor], None]
STRAIGHTEN_TERMS = [SIGNALS.index(name) for name in ("length", "blend", "gain", "share", "due")]


def finishes(slot: Slot) -> bool:
    """Whether the kernels do the last stage of a slot that has one: a whole matrix."""
    return slot.parts is None and slot.param.numel() > 0


def _is_small(slot: Slot) -> bool:
    """Whether all of it is the kernels', products included."""
    return min(as_matrix(slot.shape)) <= SHORTEST and slot.param.numel() <= SMALL


def _sees(batch: Batch, slot: Slot) -> bool:
    """Whether they do the first: a whole matrix whose number of steps the host knows."""
    known = slot.parts is None and slot.age is not None
    return known and batch.rule.has_basis(slot.shape)


def _legible(batch: Batch, grad: Tensor) -> Tensor:
    """In a dtype that the kernels read: float64 is not one."""
    return grad if grad.dtype in kernels.STORAGE else grad.to(batch.compute_dtype)


def see_(batch: Batch) -> list[Slot]:
    """See `Backend.see_`."""
    mine, others = [], []
    for slot in batch.slots:
        (mine if _sees(batch, slot) else others).append(slot)
    if not mine:
        return others
    ((key, row),) = batch.rule.turning
    summed = [slot.state[key][row] for slot in mine]
    momenta, (kept, rows) = contiguous(summed), _bases(mine)
    seen = kernels.see_(
        readable([_legible(batch, slot.grad) for slot in mine]),
        rows,
        momenta,
        [as_matrix(slot.shape) for slot in mine],
        [_turn(slot.age or 0) for slot in mine],
        memory=bases.MEMORY,
        ridge=bases.RIDGE,
    )
    write_back_(summed, momenta)
    for entries, copies in zip(kept, rows, strict=True):
        write_back_(entries, copies)
    for slot, one in zip(mine, seen, strict=True):
        slot.plain, slot.grad = slot.grad, one.view(slot.shape)
    return others


def _turn(age: int) -> int:
    """What a matrix's bases do after that many steps."""
    if not bases.is_due(age + 1):
        return kernels.STILL
    return kernels.FIRM if bases.is_firm(age + 1) else kernels.TURNING


def _bases(slots: Sequence[Slot]) -> tuple[kernels.Bases, kernels.Bases]:
    """The slots' entries, and the same in memory that a pointer can name."""
    columns = [[slot.state[key] for slot in slots] for key in kernels.Bases._fields]
    return kernels.Bases(*columns), kernels.Bases(*map(contiguous, columns))


def move_(
    batch: Batch,
    steps: Mapping[int, Tensor],
    params: Sequence[Tensor],
    owed: Mapping[int, Tensor],
    signals: Tensor,
) -> None:
    """Whole steps of some slots that `finishes` names through the last stage, see `last_stage`.

    Args:
        batch: T parameters.
        steps: `(N,)` each, by the number of their slot; written over.
        params: of all slots, contiguous.
        owed: as `steps`; in place.
        signals: `(M, T)`.
    """
    kinds: dict[Kernel, list[int]] = {_unsee_: [], _straighten_: [], _finish_: []}
    for i in steps:
        slot = batch.slots[i]
        large = _straighten_ if _is_small(slot) else _finish_
        kinds[_unsee_ if batch.rule.has_basis(slot.shape) else large].append(i)
    for kernel, members in kinds.items():
        if members:
            rows = [[source[i] for i in members] for source in (steps, params, owed)]
            kernel(batch, [batch.slots[i] for i in members], rows, signals[:, members])


def _unsee_(batch: Batch, slots: list[Slot], rows: list[list[Tensor]], signals: Tensor) -> None:
    """`move_` of slots with bases; `rows` are their steps, parameters and what is owed."""
    steps, params, owed = rows
    lr, shapes = float(batch.lr), [as_matrix(slot.shape) for slot in slots]
    terms, keep = signals[-2:], 1.0 - lr * batch.decay
    kernels.unsee_(steps, _bases(slots)[1], params, owed, shapes, terms, lr=lr, keep=keep)


def _straighten_(
    batch: Batch, slots: list[Slot], rows: list[list[Tensor]], signals: Tensor
) -> None:
    """`move_` of slots without."""
    steps, params, owed = rows
    lr, shapes = float(batch.lr), [as_matrix(slot.shape) for slot in slots]
    terms, keep = signals[STRAIGHTEN_TERMS], 1.0 - lr * batch.decay
    kernels.straighten_(steps, params, owed, shapes, terms, QUINTICS, lr=lr, keep=keep)


def _finish_(batch: Batch, slots: list[Slot], rows: list[list[Tensor]], signals: Tensor) -> None:
    """`move_` of large slots without: torch's products, and few passes over the memory."""
    lr = float(batch.lr)
    columns = zip(slots, *rows, signals[STRAIGHTEN_TERMS].T.tolist(), strict=True)
    for slot, step, param, owed, (length, blend, gain, share, due) in columns:
        sides = as_matrix(slot.shape)
        shorter = in_bfloat16(step.view(sides))
        x, norm = kernels.normalize(step, torch.bfloat16 if shorter else torch.float32)
        rms = norm / math.sqrt(step.numel()) / max(length, tiny(step))
        kernels.finish_(
            step,
            iterate(x.view(sides)).contiguous().view(-1),
            param.view(-1),
            owed,
            blend=blend,
            size=gain * length * math.sqrt(rms * rms + DEAD) * math.sqrt(max(sides)),
            share=share,
            due=due,
            lr=lr,
            keep=1.0 - lr * batch.decay,
        )
