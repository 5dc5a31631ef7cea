"""The one warning about gradients that are not finite, given without making a device wait."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor

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
    watches: dict[torch.device, Watch] = field(default_factory=dict)

    def report(self, finite: Tensor, params: list[Tensor]) -> Tensor | None:
        """Take note of `finite`, `(T,)` bool; None where all are known to be, at no cost."""
        if torch.compiler.is_compiling():
            return finite
        if finite.device.type == "cpu":
            if bool(finite.all()):
                return None
            first = params[int(finite.logical_not().nonzero()[0])]
            self._warn(f" (first in a parameter of shape {tuple(first.shape)})")
        elif finite.device.type == "cuda" and not self.raised:
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
            if bool(watch.host):
                self._warn("")

    def _warn(self, where: str) -> None:
        if not self.raised:
            self.raised = True
            self.watches.clear()
            # Above: report, step, torch's two wrappers of step, and then whoever called it.
            warnings.warn(MESSAGE.format(where=where), stacklevel=6)


def pinned_flag() -> Tensor:
    """`()` bool on the host, where a device can copy to without anybody waiting."""
    return torch.zeros((), dtype=torch.bool, pin_memory=True)
