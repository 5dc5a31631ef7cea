"""The rules `l2l` and `default` on the CPU: features, cells, head and update in one pass.

Every coordinate is read and written once (`default`: read once more, for its sums); temporaries
are a few hundred KiB a thread, whatever the size of the parameters, and what the matrix stage
takes. Computes what the eager reference computes, but for rounding: activations are good to 4e-7
(see tests/test_cpu_backend.py and tests/test_cpu_default.py), and to 1e-4 where the state of `l2l`
is in float16 and the CPU can compute in 16 bits (tests/test_half_state.py).
"""

from __future__ import annotations

from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from learned_optim import kernels
from learned_optim.backends import cpu_default, cpu_matrices
from learned_optim.backends.base import Backend, Batch, Slot
from learned_optim.backends.copies import contiguous, mark_written, readable, write_back_
from learned_optim.backends.eager import Eager
from learned_optim.kernels.checks import MAX_HIDDEN, MAX_LAYERS, STORAGE
from learned_optim.rules import Default, UpdateRule, Weights
from learned_optim.rules.l2l import L2L


class Cpu(Backend):
    """The C++ kernels; one call for all tensors of a batch."""

    name: ClassVar[str] = "cpu"

    def __init__(self) -> None:
        self._eager = Eager()
        self._flat: list[tuple[Weights, Tensor]] = []
        self._prepared: WeakKeyDictionary[Batch, cpu_default.Prepared] = WeakKeyDictionary()

    @staticmethod
    def supports(rule: UpdateRule, device: torch.device, dtype: torch.dtype) -> str | None:
        """`default` and `l2l` on float32, bfloat16 and float16 parameters."""
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device.type}"
        if type(rule) is L2L and (rule.layers > MAX_LAYERS or rule.hidden > MAX_HIDDEN):
            return f"it has at most {MAX_LAYERS} layers of {MAX_HIDDEN}"
        if type(rule) not in (Default, L2L):
            return "it knows the rules 'default' and 'l2l' alone"
        if dtype not in STORAGE:
            return f"it has no {dtype}"
        if torch.compiler.is_compiling():
            return "torch.compile cannot look into it"
        return kernels.why_not()

    def see_(self, batch: Batch) -> list[Slot]:
        """See `Backend.see_`; whole matrices in one call."""
        if not batch.plain:
            return batch.slots
        return cpu_matrices.see_(batch)

    def broken(self, batch: Batch) -> Tensor:
        """See `Backend.broken`."""
        if not batch.plain:
            return self._eager.broken(batch)
        found = kernels.not_finite(contiguous([slot.grad for slot in batch.slots]))
        return found.unsqueeze(1).to(batch.compute_dtype)

    def survey(self, batch: Batch) -> Tensor:
        """See `Backend.survey`; of `default` in one pass."""
        if type(batch.rule) is not Default or not batch.plain:
            return super().survey(batch)
        self._prepared[batch] = prepared = cpu_default.Prepared(batch.rule, batch)
        return prepared.tensors.survey()

    def sums(self, batch: Batch) -> Tensor:
        """See `Backend.sums`."""
        return self._eager.sums(batch)

    def control(self, batch: Batch, survey: Tensor, finite: Tensor | None) -> Tensor:
        """See `Backend.control`; without torch's cost of an operation on each small tensor."""
        rule, slots = batch.rule, batch.slots
        # torch's default dtype is that of the counters.
        if not batch.plain or any([slot.step.dtype != torch.float32 for slot in slots]):  # noqa: C419
            return super().control(batch, survey, finite)
        if isinstance(rule, Default):
            return cpu_default.control(rule, batch, survey, self._weights(batch), finite)
        goes = [True] * len(slots) if finite is None else finite.tolist()
        kernels.count_up_([slot.step for slot, go in zip(slots, goes, strict=True) if go])
        return survey.new_zeros((0, len(slots)))

    def move(self, batch: Batch, signals: Tensor, finite: Tensor | None) -> None:
        """See `Backend.move`."""
        rule = batch.rule
        if not batch.plain:
            self._eager.move(batch, signals, finite)
        elif isinstance(rule, Default):
            prepared = self._prepared.pop(batch, None) or cpu_default.Prepared(rule, batch)
            cpu_default.move(rule, batch, prepared, signals, self._weights(batch), finite)
        elif isinstance(rule, L2L):
            self._move_l2l(rule, batch, finite)
        else:
            raise TypeError(f"the cpu backend does not know the rule {rule.name!r}")

    def _move_l2l(self, rule: L2L, batch: Batch, finite: Tensor | None) -> None:
        slots = batch.slots
        if finite is not None:
            slots = [slot for slot, good in zip(slots, finite.tolist(), strict=True) if good]
        params, cells = [slot.param for slot in slots], [slot.state["cell"] for slot in slots]
        # Copies stand in for what is not contiguous.
        rows, states = readable(params), contiguous(cells)
        lr = float(batch.lr)
        kernels.cells_update_(
            rows,
            readable([slot.grad for slot in slots]),
            states,
            self._weights(batch),
            layers=rule.layers,
            hidden=rule.hidden,
            cell=rule.cell,
            p=rule.p if rule.preprocess == "log_sign" else None,
            scale=rule.scale,
            lr=lr,
            keep=1.0 - lr * batch.decay,
            maximize=batch.maximize,
        )
        mark_written(params)
        write_back_(params, rows)
        write_back_(cells, states)

    def _weights(self, batch: Batch) -> Tensor:
        """The rule's weights in one row, in the order of `weight_shapes`; made once."""
        for weights, flat in self._flat:
            if weights is batch.weights:
                return flat
        names = batch.rule.weight_shapes()
        flat = torch.cat([batch.weights[name].reshape(-1) for name in names])
        self._flat.append((batch.weights, flat))
        return flat
