"""The Triton backend: what it serves, and what falls back to the reference."""

from __future__ import annotations

import functools
from importlib import metadata
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.backends.base import Backend, Batch, plain_grads
from learned_optim.backends.copies import mark_written
from learned_optim.backends.eager import Eager
from learned_optim.backends.kept import capturing
from learned_optim.backends.triton import ops
from learned_optim.backends.triton.packing import MOST, MULTIPLIED, Packed, pack
from learned_optim.backends.triton.steps import (
    STORAGE,
    entries,
    fits,
    move_default,
    move_l2l,
    trace_default,
)
from learned_optim.rules import UpdateRule, Weights
from learned_optim.rules.default import Default
from learned_optim.rules.l2l import L2L

OLDEST = (3, 2)
NAMES = ("triton", "triton-windows", "pytorch-triton")  # of the packages that it comes in
LAYERS = 2
CAPABILITY = (8, 0)


def missing() -> str | None:
    """What keeps `triton` from being used here, as a half sentence; does not import it."""
    version = next((found for name in NAMES if (found := _version(name))), None)
    if version is None:
        return "it needs the package triton, which comes with CUDA builds of torch"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"it needs triton {OLDEST[0]}.{OLDEST[1]} or later and finds {version}"
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


_MISSING = missing()


def unknown(rule: UpdateRule) -> str | None:
    """What the kernels lack for a rule, as a half sentence."""
    if type(rule) is L2L and rule.cell == "lstm":
        if rule.layers > LAYERS or rule.hidden > MOST:
            return f"it has at most {LAYERS} layers of {MOST}"
    elif type(rule) is Default:
        if rule.hidden > MULTIPLIED:
            return f"it has at most {MULTIPLIED} units a coordinate"
    else:
        return "it knows the rules 'l2l' with cell 'lstm' and 'default' alone"
    return None


class Triton(Backend):
    """Few launches for all tensors of a batch; the host never waits, so a CUDA graph can have it.

    State is as the other backends have it, so checkpoints move. Small matters, such as the rule's
    `control` and its matrix stage, stay with torch.
    """

    name: ClassVar[str] = "triton"

    def __init__(self) -> None:
        self._eager = Eager()
        self._packed: list[tuple[Weights, Packed]] = []

    @staticmethod
    def supports(rule: UpdateRule, device: torch.device, dtype: torch.dtype) -> str | None:
        """`l2l` with LSTM cells and `default`, on float32, bfloat16 and float16 parameters."""
        if device.type != "cuda":
            return f"it runs on CUDA devices, not on {device.type}"
        if torch.version.hip:
            return "it is for NVIDIA GPUs"
        if dtype not in STORAGE:
            return f"it has no {dtype}"
        # A traced step has been through here before it was traced.
        unable = None if torch.compiler.is_compiling() else _unable(device)
        reason = unknown(rule) or _MISSING or unable
        if reason is None and not torch.compiler.is_compiling() and not capturing(device):
            reason = cannot_launch(device)
        return reason

    def survey(self, batch: Batch) -> Tensor:
        """See `Backend.survey`: both parts in one pass."""
        if not fits(batch):
            return self._eager.survey(batch)
        grads, params = entries(batch)[:2]
        moments = entries(batch)[2] if batch.rule.summary_size else []
        plains = plain_grads(batch.slots) or grads
        if torch.compiler.is_compiling():
            return ops.survey(grads, plains, params, moments, batch.maximize)
        from learned_optim.backends.triton import launch

        return launch.survey(grads, plains, params, moments, batch.maximize)

    def broken(self, batch: Batch) -> Tensor:
        """See `Backend.broken`."""
        return self.survey(batch)[:, :1]

    def sums(self, batch: Batch) -> Tensor:
        """See `Backend.sums`."""
        return self.survey(batch)[:, 1:]

    def move(self, batch: Batch, signals: Tensor, finite: Tensor | None) -> None:
        """See `Backend.move`."""
        rule = batch.rule
        if not fits(batch):
            self._eager.move(batch, signals, finite)
        elif isinstance(rule, L2L):
            move_l2l(batch, rule, self._weights(batch), finite)
        elif isinstance(rule, Default):
            move = trace_default if torch.compiler.is_compiling() else move_default
            move(batch, rule, self._weights(batch).columns, signals, finite)
        else:
            raise TypeError(f"the triton backend does not know the rule {rule.name!r}")
        if not torch.compiler.is_compiling():
            mark_written(slot.param for slot in batch.slots)

    def _weights(self, batch: Batch) -> Packed:
        """The rule's weights as the kernels read them; made once where nothing is traced.

        What is made while a CUDA graph is captured belongs to that graph.
        """
        if torch.compiler.is_compiling():
            return pack(batch.rule, batch.weights)
        for weights, packed in self._packed:
            if weights is batch.weights:
                return packed
        packed = pack(batch.rule, batch.weights)
        if not capturing(batch.device):
            self._packed.append((batch.weights, packed))
        return packed


@functools.cache
def cannot_launch(device: torch.device) -> str | None:
    """What keeps a small kernel from running there, as a half sentence; asked once.

    Triton needs a C compiler, Python's headers and a folder for what it compiles.
    """
    try:
        from learned_optim.backends.triton import launch

        some = [torch.zeros(2, device=device)]
        launch.survey(some, some, some, [], False)
    except Exception as error:  # of a compiler, of the driver, of a broken installation
        first = str(error).partition("\n")[0]
        return f"triton cannot launch a kernel here ({type(error).__name__}: {first})"
    return None


def _unable(device: torch.device) -> str | None:
    """What the device lacks, as a half sentence."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    if torch.cuda.get_device_capability(device) < CAPABILITY:
        return f"it needs compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or later"
    return None
