"""What of a param group can take its step together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

# Of these a pointer can name the memory; of fake tensors and DTensors none can.
PLAIN = {Tensor, torch.nn.Parameter}

Kind = tuple[torch.device, torch.dtype]


def alike(params: Iterable[Tensor]) -> dict[Kind, list[Tensor]]:
    """Those with a gradient, by device and dtype."""
    found: dict[Kind, list[Tensor]] = {}
    for param in params:
        if param.grad is not None:
            found.setdefault((param.device, param.dtype), []).append(param)
    return found


def apart(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """The same in lists of which none has two parameters on one memory.

    Parameters of one list may be moved side by side, where the last one written would be all that
    is left of such two.
    """
    if torch.compiler.is_compiling() or _all_apart(params):
        yield params
        return
    rounds: dict[int, list[Tensor]] = {}
    seen: dict[int, int] = {}
    for param in params:
        # Without memory that can be named, such as that of a DTensor, each is on its own.
        place = (type(param) in PLAIN and param.data_ptr()) or id(param)
        seen[place] = seen.get(place, 0) + 1
        rounds.setdefault(seen[place], []).append(param)
    yield from rounds.values()


def _all_apart(params: list[Tensor]) -> bool:
    """Whether that is sure at a glance."""
    plain = {type(param) for param in params} <= PLAIN
    return plain and len({param.data_ptr() for param in params}) == len(params)


def factor(lr: float | Tensor, device: torch.device, dtype: torch.dtype) -> float | Tensor:
    """A group's `lr`; as a tensor, `()`, where the arithmetic can use it."""
    if not isinstance(lr, Tensor):
        return lr
    # A number on the host serves every device; one on a device serves that device.
    return lr.reshape(()).to(lr.device if lr.device.type == "cpu" else device, dtype)
