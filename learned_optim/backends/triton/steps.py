"""Which tensors of a batch go to which launch, eagerly and while a step is traced.

torch.compile cannot look into a launch: there each one is an operator of `ops`, which sees only
its own tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learned_optim.backends.base import Batch
from learned_optim.backends.last_stage import Unfinished
from learned_optim.backends.triton import ops
from learned_optim.backends.triton.packing import Packed
from learned_optim.rules.default import OWED, Default
from learned_optim.rules.l2l import L2L

STORAGE = (torch.float32, torch.bfloat16, torch.float16)


def entries(batch: Batch) -> list[list[Tensor]]:
    """Gradients, parameters, and each of the coordinates' entries of the state."""
    slots = batch.slots
    state = [[slot.state[key] for slot in slots] for key in batch.rule.keys_per("coordinate")]
    return [[slot.grad for slot in slots], [slot.param for slot in slots], *state]


def fits(batch: Batch) -> bool:
    """Whether kernels can read its tensors: memory that a pointer can name, one dtype an entry."""
    if not batch.plain:
        return False
    found = [{tensor.dtype for tensor in tensors} for tensors in entries(batch)]
    alike = all(len(kinds) == 1 and kinds <= set(STORAGE) for kinds in found)
    # The moments are summed up, in their own dtype.
    return alike and (not batch.rule.summary_size or found[2] == {torch.float32})


def settings(batch: Batch) -> tuple[float, Tensor | None, float, bool]:
    """`lr` as a number and as a tensor, of which one counts; decay; maximize."""
    if isinstance(batch.lr, Tensor):
        return 0.0, batch.lr, batch.decay, batch.maximize
    return float(batch.lr), None, batch.decay, batch.maximize


def move_l2l(batch: Batch, rule: L2L, weights: Packed, finite: Tensor | None) -> None:
    """A step of `l2l`, in as many launches as the tensors have alignments."""
    p = rule.p if rule.preprocess == "log_sign" else None
    sizes = (rule.layers, rule.hidden, p, rule.scale)
    grads, params, cells = entries(batch)
    columns, matrices = weights
    if torch.compiler.is_compiling():
        ops.l2l_(grads, params, cells, columns, matrices, finite, *settings(batch), *sizes)
        return
    from learned_optim.backends.triton.constants import L2LSizes
    from learned_optim.backends.triton.launch import Group, l2l_

    group = Group(finite, *settings(batch))
    l2l_(grads, params, cells, columns, matrices, group, L2LSizes(*sizes))


def late_ones(batch: Batch) -> list[int]:
    """Tensors that pass the last stage before they move."""
    return [i for i, slot in enumerate(batch.slots) if batch.rule.waits(slot.shape)]


def move_default(
    batch: Batch, rule: Default, columns: Tensor, signals: Tensor, finite: Tensor | None
) -> None:
    """A step of `default`: all but the matrices at once, then matrix by matrix."""
    from learned_optim.backends.triton.default_step import DefaultStep
    from learned_optim.backends.triton.launch import Group

    late = late_ones(batch)
    grads, params, moments, *rest = entries(batch)
    cells = rest[0] if rule.hidden else []
    group = Group(finite, *settings(batch))
    step = DefaultStep(grads, params, moments, cells, columns, signals, group, late)
    step.move_()
    flat, owed = (dict(enumerate(rows)) for rows in (step.flat_params, step.flat_owed))
    unfinished = Unfinished(batch, flat, owed, signals, finite)
    for index in late:
        count = batch.slots[index].param.numel()
        if count:
            steps = torch.empty(count, dtype=torch.float32, device=batch.device)
            step.move_(index, steps)
            unfinished.put(index, 0, steps)
        unfinished.move_whole_()
    step.write_back_()


def trace_default(
    batch: Batch, rule: Default, columns: Tensor, signals: Tensor, finite: Tensor | None
) -> None:
    """`move_default` by operators that are given their own tensors alone."""
    late = late_ones(batch)

    def move(members: list[int], steps: Tensor | None) -> None:
        tensors = [[entry[index] for index in members] for entry in entries(batch)]
        told = torch.stack([signals[:, index] for index in members], dim=1)
        kept = None if finite is None else torch.stack([finite[index] for index in members])
        cells = tensors[3] if rule.hidden else []
        ops.default_(*tensors[:3], cells, steps, columns, told, kept, *settings(batch))

    together = [index for index in range(len(batch.slots)) if index not in late]
    if together:
        move(together, None)
    flat = {index: batch.slots[index].param.contiguous().view(-1) for index in late}
    rows = {index: batch.slots[index].state["moments"][OWED] for index in late}
    owed = {index: row.contiguous().view(-1) for index, row in rows.items()}
    unfinished = Unfinished(batch, flat, owed, signals, finite)
    for index in late:
        param = batch.slots[index].param
        if param.numel():
            steps = torch.empty(param.numel(), dtype=torch.float32, device=batch.device)
            move([index], steps)
            unfinished.put(index, 0, steps)
        unfinished.move_whole_()
        for whole, copy in ((param, flat[index]), (rows[index], owed[index])):
            if not whole.is_contiguous():
                whole.copy_(copy.view(whole.shape))
