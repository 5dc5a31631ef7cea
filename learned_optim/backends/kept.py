"""Small tables on a device: made without the host waiting for it, and kept for the next step.

They are filled without memory of the host that a captured graph would read again later: numbers
travel as arguments of launches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Kind = TypeVar("Kind")


def numbers(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.tensor(values)`, which on CUDA would wait for the device to take the copy."""
    table = torch.zeros(len(values), dtype=dtype, device=device)
    if values:
        torch._foreach_add_(list(table.unbind()), list(values))  # pyright: ignore[reportPrivateImportUsage]
    return table


class Kept:
    """What was made for the last few keys, on the stream it was made on.

    A CUDA graph reads memory again at each replay. So what a graph that is being captured takes
    from here stays for good, and what has to be made meanwhile becomes part of the graph, which
    makes it again at each replay, and is not kept.

    Args:
        room: entries that are kept, besides those of graphs.
    """

    def __init__(self, room: int = 256) -> None:
        self._room = room
        self._recent: OrderedDict[Hashable, object] = OrderedDict()
        self._captured: dict[Hashable, object] = {}

    def get(self, key: Hashable, device: torch.device, make: Callable[[], Kind]) -> Kind:
        """What `make` returned for this key, or returns now."""
        if capturing(device):
            found = self._captured.get(key, self._latest(key))
            if found is None:
                return make()
            return self._captured.setdefault(key, found)  # type: ignore[return-value]
        here = (key, stream(device))
        # Taken out and put back behind all others: what another thread drops meanwhile is no loss.
        found = self._recent.pop(here, None)
        if found is None:
            found = make()
        self._recent[here] = found
        if len(self._recent) > self._room:
            self._recent.popitem(last=False)
        return found  # type: ignore[return-value]

    def _latest(self, key: Hashable) -> object | None:
        """From any stream: a capture starts when all of them are done."""
        return next((x for (k, _), x in reversed(self._recent.items()) if k == key), None)  # type: ignore[misc]


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def stream(device: torch.device) -> int:
    """The current stream's number; 0 where there are none."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
