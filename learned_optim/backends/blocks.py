"""A batch's coordinates in blocks: how tensors are cut, and how a block is read.

A block that lies inside one tensor is read where it is; of one that spans several, `eager` gathers
the pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from learned_optim.backends.base import Batch, Slot, cuts
from learned_optim.rules import Coordinates, State, UpdateRule

SHARING = 4  # tensors in a block from which they share it
TOGETHER = 4096  # coordinates up to which a compiler gets tensors in one block


@dataclass
class Flat:
    """A slot as rows of coordinates: `(N,)` and `(rows, N)` views of its tensors.

    `copies` holds (tensor, flat copy) of those that have no such view, to be written back.
    """

    grad: Tensor
    plain: Tensor | None
    param: Tensor
    state: State
    copies: list[tuple[Tensor, Tensor]]

    def owed(self, rule: UpdateRule) -> Tensor | None:
        """What is owed of the coordinates, `(N,)`; None where the rule defers nothing."""
        return None if rule.owing is None else self.state[rule.owing[0]][rule.owing[1]]


@dataclass
class Piece:
    """Coordinates `start:stop` of the slot number `slot`."""

    slot: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of coordinates."""
        return self.stop - self.start


def flatten(slot: Slot, keys: tuple[str, ...]) -> Flat:
    """Views where the layout allows, copies where not (transposed or strided tensors)."""
    copies = []

    def view(tensor: Tensor, *shape: int) -> Tensor:
        flat = tensor.reshape(shape)
        if not tensor.is_contiguous():
            flat = flat.contiguous()
            copies.append((tensor, flat))
        return flat

    count = slot.param.numel()
    param = view(slot.param, count)
    state = {key: view(slot.state[key], slot.state[key].shape[0], count) for key in keys}
    plain = None if slot.plain is None else slot.plain.reshape(count)
    return Flat(slot.grad.reshape(count), plain, param, state, copies)


def stream(lengths: list[int], waits: list[bool], block: int) -> Iterator[list[Piece]]:
    """Cut the tensors into blocks; empty tensors are in none.

    Small ones share blocks. A large one has its own, as a block of several is gathered, which costs
    more than a call. Those whose steps wait keep their order, or they would wait for each other.
    """
    shared: list[Piece] = []
    used = 0
    for slot, length in enumerate(lengths):
        if SHARING * length > block:
            if waits[slot] and any(waits[piece.slot] for piece in shared):
                yield shared
                shared, used = [], 0
            yield from ([Piece(slot, *ends)] for ends in cuts(length, block))
        elif length:
            if used + length > block:
                yield shared
                shared, used = [], 0
            shared.append(Piece(slot, 0, length))
            used += length
    if shared:
        yield shared


def few(lengths: list[int]) -> list[list[Piece]]:
    """As few blocks as copy little: one for all small tensors, one for each large one.

    For a compiler, which fuses by itself, and into whose graph a loop is unrolled.
    """
    whole = [Piece(slot, 0, length) for slot, length in enumerate(lengths) if length]
    small = [piece for piece in whole if piece.length <= TOGETHER]
    large = [[piece] for piece in whole if piece.length > TOGETHER]
    return [small, *large] if small else large


def is_real(coords: Coordinates) -> bool:
    """Whether they can be written into memory that is kept: fake tensors have no numbers."""
    return type(coords.grad) is Tensor and type(coords.param) is Tensor


def read(batch: Batch, flat: Flat, piece: Piece) -> tuple[Coordinates, State]:
    """The coordinates of one piece in the compute dtype: views where nothing is to convert."""
    here, dtype = slice(piece.start, piece.stop), batch.compute_dtype

    def along(grad: Tensor) -> Tensor:
        return -grad.to(dtype) if batch.maximize else grad.to(dtype)

    state = {key: value[:, here].to(dtype) for key, value in flat.state.items()}
    plain = None if flat.plain is None else along(flat.plain[here])
    param = flat.param[here].to(dtype)
    return Coordinates(along(flat.grad[here]), param, plain=plain), state


def stacked(batch: Batch, flats: list[Flat]) -> tuple[Coordinates, State]:
    """Tensors of S coordinates each, `(T, S)`, and their state, `(T, rows, S)`."""

    def join(tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors).to(batch.compute_dtype)

    def along(grads: list[Tensor]) -> Tensor:
        return -join(grads) if batch.maximize else join(grads)

    state = {key: join([flat.state[key] for flat in flats]) for key in flats[0].state}
    seen = any(flat.plain is not None for flat in flats)
    plains = [flat.grad if flat.plain is None else flat.plain for flat in flats]
    grad, plain = along([flat.grad for flat in flats]), along(plains) if seen else None
    return Coordinates(grad, join([flat.param for flat in flats]), plain=plain), state


def per_coordinate(rows: Tensor, block: list[Piece]) -> Tensor:
    """`(M, T)`, a column a tensor -> `(M, 1)` for a block of one tensor, else `(M, length)`."""
    if len(block) == 1 or not rows.shape[0]:
        return rows[:, block[0].slot, None]
    return torch.cat([rows[:, p.slot, None].expand(-1, p.length) for p in block], dim=1)
