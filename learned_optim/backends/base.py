"""What a backend is: it moves the coordinates of a batch of parameters by one step.

The optimizer keeps everything that is not arithmetic to itself (groups, closures, checkpoints,
shards) and hands a backend plain local tensors: a `Batch` of `Slot`s. One step is then

1. `Backend.survey`: a few numbers a tensor, `(T, 1 + K)`: is its gradient finite, and the rule's
   sums. The optimizer adds them up over shards in between.
2. `Backend.control`: once a tensor, the rule's `control`, and the step counter.
3. `Backend.move`: the coordinates.

Nothing here reads a value back to the host, so nothing waits for a device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.backends.kept import Kept, numbers
from learned_optim.rules import Clock, State, UpdateRule, Weights
from learned_optim.shards import Parts
from learned_optim.together import PLAIN

_FACTS = Kept()


@dataclass
class Slot:
    """What one parameter brings to a step: real, local tensors (of a shard: the local part).

    Attributes:
        param: any shape and layout; written in place.
        grad: the same shape, any layout; never written. Seen in the basis, after `first_stage`.
        plain: the same in no basis; None: `grad` is.
        state: the rule's entries as `UpdateRule.init_state` lays them out; written in place.
        step: `()`, the number of steps taken so far; written in place.
        shape: of the whole tensor, all shards together.
        parts: how the shards fit together; None where this is the whole tensor.
        age: `step` as a number, where the host knows it without waiting; else None.
    """

    param: Tensor
    grad: Tensor
    state: State
    step: Tensor
    shape: tuple[int, ...]
    parts: Parts | None = None
    age: int | None = None
    plain: Tensor | None = None


@dataclass(eq=False)
class Batch:
    """Parameters that share a rule, the group's settings, a device and a dtype.

    Attributes:
        rule: the functions.
        weights: its meta-parameters, on `device` and in `compute_dtype`.
        slots: at least one.
        lr: factor on the step, a number or a 0-d tensor.
        decay: fraction that decoupled decay takes off the parameters at `lr` = 1.
        maximize: negate the gradients.
        total_steps: the horizon, where the user told it.
        device: of all tensors.
        compute_dtype: what the arithmetic is done in.
    """

    rule: UpdateRule
    weights: Weights
    slots: list[Slot]
    lr: float | Tensor
    decay: float
    maximize: bool
    total_steps: int | None
    device: torch.device
    compute_dtype: torch.dtype

    @property
    def plain(self) -> bool:
        """Whether its tensors have memory that a pointer can name (fake tensors have none)."""
        kinds = {type(slot.param) for slot in self.slots}
        return {type(slot.grad) for slot in self.slots} == {Tensor} and kinds <= PLAIN


class Backend(ABC):
    """A way to compute a step. Stateless but for scratch memory, one instance an optimizer."""

    name: ClassVar[str]

    @staticmethod
    @abstractmethod
    def supports(rule: UpdateRule, device: torch.device, dtype: torch.dtype) -> str | None:
        """None when it can serve such parameters, else what is missing, as a half sentence."""

    def see_(self, batch: Batch) -> list[Slot]:
        """Before all else: the work of `first_stage`, for the slots that it can do it for.

        Returns:
            The others, which `first_stage` has to look at.
        """
        return batch.slots

    def broken(self, batch: Batch) -> Tensor:
        """1 where a tensor's gradient holds NaN or infinity, else 0, `(T, 1)`."""
        # The extremes propagate NaN, and need neither a temporary nor a sum that could overflow.
        extremes = [
            torch.stack(torch.aminmax(slot.grad)) if slot.grad.numel() else slot.grad.new_zeros(2)
            for slot in batch.slots
        ]
        finite = torch.stack(extremes).isfinite().all(dim=1, keepdim=True)
        return finite.logical_not().to(batch.compute_dtype)

    def survey(self, batch: Batch) -> Tensor:
        """First pass over the memory, `(T, 1 + K)`: `broken`, and `sums` where the rule has any.

        Everything in it adds up over the shards of a tensor.
        """
        broken = self.broken(batch)
        if not batch.rule.summary_size:
            return broken
        return torch.cat((broken, self.sums(batch)), dim=1)

    @abstractmethod
    def sums(self, batch: Batch) -> Tensor:
        """The rule's `summarize` of each tensor, `(T, K)`."""

    def control(self, batch: Batch, survey: Tensor, finite: Tensor | None) -> Tensor:
        """Run the rule's `control` for all tensors; counters and per-tensor state in place.

        Args:
            batch: T parameters.
            survey: `(T, 1 + K)`, added up over all shards.
            finite: `(T,)` bool, None: all True; see `move`.

        Returns:
            The signals, `(M, T)`.
        """
        return advance(batch, survey[:, 1:], finite)

    @abstractmethod
    def move(self, batch: Batch, signals: Tensor, finite: Tensor | None) -> None:
        """Update the parameters and the per-coordinate state in place.

        A coordinate whose step is not finite stays where it is, with its state; a tensor whose
        step the rule's `finish` leaves with a number that is not finite stays where it is.

        Args:
            batch: the parameters.
            signals: `(M, T)`, from `control`.
            finite: `(T,)` bool; where False the tensor and its state stay untouched. None: all
                are known to be True.
        """


def cuts(total: int, block: int) -> Iterator[tuple[int, int]]:
    """`(start, stop)` of the pieces of at most `block` that `total` is cut into."""
    for start in range(0, total, block):
        yield start, min(start + block, total)


def advance(batch: Batch, sums: Tensor, finite: Tensor | None) -> Tensor:
    """`Backend.control` in torch operations, of the sums `(T, K)`."""
    slots, rule = batch.slots, batch.rule
    steps = torch.stack([slot.step for slot in slots]) + 1
    total = None if batch.total_steps is None else torch.full_like(steps, batch.total_steps)
    state = {
        key: torch.stack([slot.state[key] for slot in slots], dim=-1).to(batch.compute_dtype)
        for key in rule.keys_per("tensor")
    }
    clock = Clock(steps, total)
    signals, new_state = rule.control(sums.mT, facts(batch), state, clock, batch.weights)
    overwrite_all_([slot.step for slot in slots], steps, finite)
    for key, value in new_state.items():
        overwrite_all_([slot.state[key] for slot in slots], value.mT, finite)
    return signals


def facts(batch: Batch) -> Tensor:
    """What the rule's `describe` says of the tensors, `(D, T)`; kept from step to step."""
    shapes = tuple([slot.shape for slot in batch.slots])
    rule, device, dtype = batch.rule, batch.device, batch.compute_dtype

    def make() -> Tensor:
        columns = [*zip(*(rule.describe(shape) for shape in shapes), strict=True)]
        if device.type == "cpu":
            return torch.tensor(columns, dtype=dtype, device=device).view(-1, len(shapes))
        flat = [number for column in columns for number in column]
        return numbers(flat, dtype, device).view(-1, len(shapes))

    if torch.compiler.is_compiling() or not batch.plain:
        return make()
    return _FACTS.get((rule, shapes, dtype, device), device, make)


def plain_grads(slots: Sequence[Slot]) -> list[Tensor] | None:
    """Their gradients in no basis; None where all are in none as they are."""
    if not any([slot.plain is not None for slot in slots]):  # noqa: C419 - felt in small steps
        return None
    return [slot.grad if slot.plain is None else slot.plain for slot in slots]


def moved(batch: Batch, param: Tensor, step: Tensor) -> Tensor:
    """Decoupled decay, then the step."""
    param = param * (1.0 - batch.lr * batch.decay) if batch.decay else param
    # One pass over the memory for the usual lr; a tensor's is on the device.
    if isinstance(batch.lr, float):
        return torch.add(param, step, alpha=batch.lr)
    return param + batch.lr * step


def overwrite_all_(targets: list[Tensor], values: Tensor, finite: Tensor | None) -> None:
    """`overwrite_` of T tensors by the T rows of `values`, in a few calls."""
    if finite is not None:
        rows = finite.view(-1, *[1] * (values.dim() - 1))
        values = torch.where(rows, values, torch.stack(targets))
    torch._foreach_copy_(targets, list(values.unbind()))  # pyright: ignore[reportPrivateImportUsage]


def overwrite_(target: Tensor, value: Tensor, keep: Tensor | None) -> None:
    """Copy `value` into `target`, where `keep` (None: everywhere), converting the dtype."""
    if keep is not None:
        value = torch.where(keep, value, target)
    target.copy_(value)


def free_to_read(tensor: Tensor) -> bool:
    """Whether reading a value costs nothing: on the CPU, and not while a graph is traced."""
    real = type(tensor) is Tensor  # fake tensors have no values
    return real and tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """The step computes in its own dtypes, whatever surrounds it."""
    kind = device.type if torch.amp.is_autocast_available(device.type) else "cpu"
    # A small step feels what it takes to turn off what is off.
    if not torch.compiler.is_compiling() and not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
