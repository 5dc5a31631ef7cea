"""The rule `l2l` on the CPU: features, cells, head and update in one pass over the memory.

Every coordinate is read and written once; temporaries are a few hundred KiB a thread, whatever the
size of the parameters. Computes what the eager reference computes, but for rounding: activations
are good to 4e-7 (see tests/test_backends_cpu.py).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from learned_optim import kernels
from learned_optim.backends.base import Backend, Batch, plain
from learned_optim.backends.eager import Eager
from learned_optim.kernels.checks import MAX_HIDDEN, MAX_LAYERS, STORAGE
from learned_optim.rules import UpdateRule
from learned_optim.rules.l2l import L2L


def readable(grad: Tensor) -> Tensor:
    """The gradient in row-major memory that holds its very values; itself where it does."""
    return grad.contiguous().resolve_neg()


class Cpu(Backend):
    """The C++ kernels; one call for all tensors of a batch."""

    name: ClassVar[str] = "cpu"

    def __init__(self) -> None:
        self._eager = Eager()

    @staticmethod
    def supports(rule: UpdateRule, device: torch.device, dtype: torch.dtype) -> str | None:
        """LSTM cells of `l2l` on float32, bfloat16 and float16 parameters."""
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device.type}"
        if type(rule) is not L2L or rule.cell != "lstm":
            return "it knows the rule 'l2l' with cell 'lstm' alone"
        if rule.layers > MAX_LAYERS or rule.hidden > MAX_HIDDEN:
            return f"it has at most {MAX_LAYERS} layers of {MAX_HIDDEN}"
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

    def sums(self, batch: Batch) -> Tensor:
        """See `Backend.sums`; the rule has none."""
        return self._eager.sums(batch)

    def move(self, batch: Batch, signals: Tensor, finite: Tensor | None) -> None:
        """See `Backend.move`."""
        rule = batch.rule
        if not isinstance(rule, L2L):
            raise TypeError(f"the cpu backend moves the rule 'l2l' but was given {rule.name!r}")
        if not all(plain(slot) for slot in batch.slots):
            self._eager.move(batch, signals, finite)
            return
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
