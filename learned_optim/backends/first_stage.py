"""The stage of a rule that sees whole gradients, each in a basis of its own: before all others.

The gradient of a slot is replaced by what is seen of it (and kept as `plain`), and from time to
time its basis turns, and with it what the state has summed up in there. So the other stages know
nothing of bases, but for `last_stage`, which takes the steps out of them.

What is seen takes as much memory as the gradient, so the caller hands over batches that hold little
of it (`portions`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from learned_optim import bases
from learned_optim.backends.base import Batch, Slot, cuts, overwrite_all_
from learned_optim.bases import Basis
from learned_optim.matrices import as_matrix
from learned_optim.rules import UpdateRule
from learned_optim.rules.ranges import bounded

PORTION = 1 << 20  # numbers of the bases in use at a time, where one matrix's are no more
STACKED = 1 << 14  # twice the numbers of a matrix up to which those of one shape share a call
STACK = 1 << 18  # numbers of the bases of those that share one


def portions(rule: UpdateRule, slots: Sequence[Slot]) -> Iterator[range]:
    """Numbers of the slots in order, cut so that few numbers are in use at a time.

    Counted are those of the bases: at least twice as many as are seen, and many more of a long one.

    Those of shards are not cut: each batch costs a collective of all processes, and of what is seen
    only the shards are kept.
    """
    first, used = 0, 0
    for index, slot in enumerate(slots):
        cut = slot.parts is None and rule.has_basis(slot.shape)
        size = _size(slot.shape) if cut else 0
        if index > first and size and used + size > PORTION:
            yield range(first, index)
            first, used = index, 0
        used += size
    yield range(first, len(slots))


def _size(shape: tuple[int, ...]) -> int:
    """Numbers of a matrix's bases."""
    rows, columns = as_matrix(shape)
    return rows * rows + columns * columns


def basis_of(slot: Slot) -> Basis:
    """The entries of its state that are its basis."""
    return Basis(*(slot.state[key] for key in Basis._fields))


def bases_of(slots: list[Slot]) -> Basis:
    """Of slots of one shape, `(S, ...)` each."""
    return Basis(*(_stack([slot.state[key] for slot in slots]) for key in Basis._fields))


def see_(batch: Batch, slots: list[Slot]) -> None:
    """Put in the place of gradients what is seen of them; turn the bases whose turn it is.

    Args:
        batch: the parameters.
        slots: those of them that are left to do, see `Backend.see_`.
    """
    alike: dict[tuple[object, ...], list[Slot]] = {}
    for index, slot in enumerate(slots):
        if batch.rule.has_basis(slot.shape):
            small = slot.parts is None and 2 * slot.param.numel() <= STACKED
            small = small and slot.age is not None  # or they might not be of one age
            key = (slot.shape, slot.age, slot.grad.dtype) if small else (index,)
            alike.setdefault(key, []).append(slot)
    for some in alike.values():
        for start, stop in cuts(len(some), max(1, STACK // _size(some[0].shape))):
            _see_(batch, some[start:stop])
    dtypes = {slot.grad.dtype for slot in batch.slots}
    # Kernels read gradients of one dtype, none wider than they compute in; what is seen is in that.
    if len(dtypes) > 1 or dtypes == {torch.float64}:
        for slot in batch.slots:
            slot.grad = slot.grad.to(batch.compute_dtype)
    # What is seen is in that dtype too.
    for slot in batch.slots:
        if slot.plain is not None:
            slot.plain = slot.plain.to(batch.compute_dtype)


def _see_(batch: Batch, slots: list[Slot]) -> None:
    """The same of slots of one shape and age: one, or several that are no shards."""
    shape, age = slots[0].shape, slots[0].age
    sides = as_matrix(shape)
    basis = bases_of(slots)
    grads = [slot.grad if slot.parts is None else slot.parts.join(slot.grad) for slot in slots]
    grad = _stack(grads).to(batch.compute_dtype).reshape(-1, *sides)
    seen = bases.see(_within(grad), basis)
    if age is None or bases.is_due(age + 1):
        due = bases.is_due(slots[0].step + 1) if age is None else None
        seen = _turn_(batch, slots, seen, basis, due)
    wholes = seen.reshape(-1, *shape).unbind()
    for slot, whole in zip(slots, wholes, strict=True):
        slot.plain = slot.grad
        slot.grad = whole if slot.parts is None else slot.parts.cut(whole)


def _turn_(
    batch: Batch, slots: list[Slot], seen: Tensor, basis: Basis, due: Tensor | None
) -> Tensor:
    """Turn bases, and what the state holds in them; the gradient as it is seen then.

    Args:
        batch: of the slots.
        slots: whose bases they are.
        seen: the whole gradients in the bases as they were, `(S, A, B)`.
        basis: of all of them, `(S, ...)`.
        due: `()`, whether they turn at all; None: they do.
    """
    age = slots[0].age
    new, turn = bases.follow(seen, basis, due, firm=age is None or bases.is_firm(age + 1))
    for key, values in new._asdict().items():
        overwrite_all_([slot.state[key] for slot in slots], values, None)
    for key, row in batch.rule.turning:
        entries = [slot.state[key][row] for slot in slots]
        if slots[0].parts is not None:
            entries = [slots[0].parts.join(entries[0])]
        summed = _stack(entries).to(seen.dtype).reshape(seen.shape)
        turned = turn.apply(summed).reshape(-1, *slots[0].shape)
        if slots[0].parts is not None:
            turned = slots[0].parts.cut(turned[0]).unsqueeze(0)
        overwrite_all_([slot.state[key][row] for slot in slots], turned, None)
    return turn.apply(seen)


def _stack(tensors: list[Tensor]) -> Tensor:
    """A view, of one."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)


def _within(grad: Tensor) -> Tensor:
    """Numbers that can be squared and added up; one that is not finite stays so, to be noticed."""
    return bounded(grad) + 0 * grad
