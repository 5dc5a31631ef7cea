"""The one warning about gradients that are not finite, given without making a device wait."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

# Of what stands between a step and the user's line that asked for it.
INSIDE = (
    f"{Path(__file__).parent}{os.sep}",
    f"{Path(torch.__file__).parent}{os.sep}",
    contextlib.__file__,
)
MESSAGE = (
    "a gradient holds NaN or infinity{where}: such a parameter sits the step out and keeps its "
    "state. This is said once an optimizer"
)


@dataclass
class Watch:
    """What is known about one CUDA device.

    Attributes:
        seen: on the device, `()` bool: whether any gradient was broken so far.
        host: a pinned copy of it, once `copied` has happened.
        copied: the event after the copy; None while no copy is under way.
    """

    seen: Tensor
    host: Tensor
    copied: torch.cuda.Event | None = None


@dataclass
class Alarm:
    """Warns at the first broken gradient, once.

    On the CPU at once. On CUDA when a copy that nobody waits for has arrived, some steps later.
    On other devices, within torch.compile and while a CUDA graph is captured, not at all: there
    is no way to tell without a stall.
    """

    raised: bool = False
    due: str | None = None
    watches: dict[torch.device, Watch] = field(default_factory=dict)

    def report(self, broken: Tensor, params: list[Tensor]) -> Tensor | None:
        """Take note of `broken`, `(T,)`: 0 where a parameter's gradient is finite.

        The warning waits for `sound`: made an error, it must not leave a step half done.

        Returns:
            Which are finite, `(T,)` bool; None where all are known to be, at no cost.
        """
        if torch.compiler.is_compiling():
            return broken == 0
        if broken.device.type == "cpu" and type(broken) is Tensor:  # fake tensors have no values
            found = broken.tolist()  # one call, as small tensors feel each
            if not any(found):
                return None
            first = next(param for param, bad in zip(params, found, strict=True) if bad)
            self.due = self.due or f" (first in a parameter of shape {tuple(first.shape)})"
        finite = broken == 0
        if finite.device.type == "cuda" and not self.raised:
            self.watch(finite)
        return finite

    def watch(self, finite: Tensor) -> None:
        """Take note of a verdict that lies on a CUDA device."""
        if torch.cuda.is_current_stream_capturing():
            return
        broken = finite.all().logical_not()
        watch = self.watches.get(finite.device)
        if watch is None:
            watch = self.watches[finite.device] = Watch(broken, pinned_flag())
        watch.seen = watch.seen | broken
        if watch.copied is None:
            watch.host.copy_(watch.seen, non_blocking=True)
            watch.copied = torch.cuda.Event()
            watch.copied.record(torch.cuda.current_stream(finite.device))
        elif watch.copied.query():
            watch.copied = None
            if bool(watch.host) and self.due is None:
                self.due = ""

    def sound(self) -> None:
        """Warn if there is reason to, and it has not been done."""
        if self.due is None or self.raised:
            return
        self.raised = True
        self.watches.clear()
        warn_caller(MESSAGE.format(where=self.due))


def warn_caller(message: str) -> None:
    """Warn at the first line outside this package and torch: a scheduler may stand between."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def pinned_flag() -> Tensor:
    """`()` bool on the host, where a device can copy to without anybody waiting."""
    return torch.zeros((), dtype=torch.bool, device="cpu", pin_memory=True)
