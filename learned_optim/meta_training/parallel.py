"""Several processes, one meta-training run: who does what, and how results meet.

Under torchrun each process takes every WORLD-th worker. An outer step sends one vector of the
length of the meta-parameters (all-reduce); everything else is a function of the recipe and stays
where it is, so all processes hold the same meta-parameters without ever sending them.
"""

# torch.distributed does not re-export its stores by name.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


class DeviceUnavailable(ValueError):
    """A device that is not here; the message says why."""


def place(device: str) -> torch.device:
    """The device of this process: `cuda` under torchrun is one for each process of a machine.

    Raises:
        DeviceUnavailable: if it can not be used.
    """
    try:
        found = torch.device(device)
        if found.type == "cuda" and found.index is None:
            found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.zeros(1, device=found).add_(1).item()  # meta has no numbers
        if found.type == "cuda":
            torch.cuda.set_device(found)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceUnavailable(f"the device {device!r} can not be used: {reason}") from error
    return found


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mine(count: int) -> range:
    """The indices below `count` that this process takes care of."""
    return range(rank(), count, world())


@contextmanager
def group() -> Iterator[None]:
    """Join the processes that torchrun started, if it did; tensors of both kinds may be sent."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, world = next(dist.rendezvous("env://"))
    dist.init_process_group(backend, store=_own(store), rank=rank, world_size=world)
    # Each process returns once it has reached all others, who may still be connecting: one that had
    # nothing to do and left now would make them fail.
    dist.all_reduce(torch.zeros(1))
    try:
        yield
    finally:
        dist.destroy_process_group()


def _own(store: dist.Store) -> dist.Store:
    """The part of the store that belongs to this attempt.

    torchrun keeps one store over its restarts, so a worker that is restarted faster than another
    would find the address at which the other listened before, and fail to connect to it.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt_{attempt}_of_{os.environ['WORLD_SIZE']}", store)


def add_up(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sum each tensor over the processes, in one message."""
    if world() == 1:
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def interleave(items: Sequence[T]) -> list[T]:
    """All processes' items in the order of the indices that `mine` dealt out."""
    everyone = gather(items)
    longest = max(len(theirs) for theirs in everyone)
    return [theirs[i] for i in range(longest) for theirs in everyone if i < len(theirs)]


def gather(items: Sequence[T]) -> list[list[T]]:
    """The items of each process."""
    everyone = [list(items) for _ in range(world())]
    if world() > 1:
        dist.all_gather_object(everyone, list(items))
    return everyone


def any_of(flag: bool) -> bool:
    """Whether any process says so: all then stop at the same step."""
    if world() == 1:
        return flag
    votes = torch.tensor(float(flag))
    dist.all_reduce(votes)
    return bool(votes > 0)
