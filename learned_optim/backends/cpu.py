"""The rules `l2l` and `default` on the CPU: features, cells, head and update in one pass.

Every coordinate is read and written once (`default`: read once more, for its sums); temporaries
are a few hundred KiB a thread, whatever the size of the parameters, and what the matrix stage
takes. Computes what the eager reference computes, but for rounding: activations are good to 4e-7
(see tests/test_cpu_backend.py and tests/test_cpu_default.py).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from learned_optim import kernels
from learned_optim.backends import cpu_default
from learned_optim.backends.base import Backend, Batch, plain
from learned_optim.backends.cpu_default import readable
from learned_optim.backends.eager import Eager
from learned_optim.kernels.checks import MAX_HIDDEN, MAX_LAYERS, STORAGE
from learned_optim.rules import Default, UpdateRule
from learned_optim.rules.l2l import L2L


class Cpu(Backend):
    """The C++ kernels; one call for all tensors of a batch."""

    name: ClassVar[str] = "cpu"

    def __init__(self) -> None:
        self._eager = Eager()

    @staticmethod
    def supports(rule: UpdateRule, device: torch.device, dtype: torch.dtype) -> str | None:
        """`default`, and `l2l` with LSTM cells, on float32, bfloat16 and float16 parameters."""
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device.type}"
        if type(rule) is L2L and (rule.layers > MAX_LAYERS or rule.hidden > MAX_HIDDEN):
            return f"it has at most {MAX_LAYERS} layers of {MAX_HIDDEN}"
        if type(rule) is not Default and (type(rule) is not L2L or rule.cell != "lstm"):
            return "it knows the rules 'default' and 'l2l' with cell 'lstm' alone"
        if dtype not in STORAGE:
            return f"it has no {dtype}"
        if torch.compiler.is_compiling():
            return "torch.compile cannot look into it"
        return kernels.why_not()

    def broken(self, batch: Batch) -> Tensor:
        """See `Backend.broken`."""
        if not all(plain(slot) for slot in batch.slots):
            return self._eager.broken(batch)
        found = kernels.not_finite([slot.grad.contiguous() for slot in batch.slots])
        return found.unsqueeze(1).to(batch.compute_dtype)

    def survey(self, batch: Batch) -> Tensor:
        """See `Backend.survey`; of `default` in one pass."""
        if type(batch.rule) is Default and all(plain(slot) for slot in batch.slots):
            return cpu_default.survey(batch)
        return super().survey(batch)

    def sums(self, batch: Batch) -> Tensor:
        """See `Backend.sums`."""
        return self._eager.sums(batch)

    def move(self, batch: Batch, signals: Tensor, finite: Tensor | None) -> None:
        """See `Backend.move`."""
        rule = batch.rule
        if not all(plain(slot) for slot in batch.slots):
            self._eager.move(batch, signals, finite)
        elif isinstance(rule, Default):
            cpu_default.move(rule, batch, signals, finite)
        elif isinstance(rule, L2L):
            self._move_l2l(rule, batch, finite)
        else:
            raise TypeError(f"the cpu backend does not know the rule {rule.name!r}")

    def _move_l2l(self, rule: L2L, batch: Batch, finite: Tensor | None) -> None:
        slots = batch.slots
        if finite is not None:
            slots = [slot for slot, good in zip(slots, finite.tolist(), strict=True) if good]
        params = [slot.param.contiguous() for slot in slots]
        states = [slot.state["cell"].contiguous() for slot in slots]
        lr = float(batch.lr)
        kernels.lstm_update_(
            params,
            [readable(slot.grad) for slot in slots],
            states,
            torch.cat([batch.weights[name].reshape(-1) for name in rule.weight_shapes()]),
            layers=rule.layers,
            hidden=rule.hidden,
            p=rule.p if rule.preprocess == "log_sign" else None,
            scale=rule.scale,
            lr=lr,
            keep=1.0 - lr * batch.decay,
            maximize=batch.maximize,
        )
        for slot, param, state in zip(slots, params, states, strict=True):
            # Copies stood in for what is not contiguous; a tensor is its own otherwise.
            if param is not slot.param:
                slot.param.copy_(param)
            elif not param.is_inference():
                # The kernel writes behind autograd's back; a later backward must notice.
                torch.autograd.graph.increment_version(param)
            if state is not slot.state["cell"]:
                slot.state["cell"].copy_(state)
