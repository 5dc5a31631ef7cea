"""The reference backend: torch operations on blocks of coordinates.

All coordinates of a batch form one stream, cut into blocks of a fixed size: small tensors share
a block, large ones are cut. So every temporary is as large as a block and stays in the cache,
and the allocator hands the same few buffers out again. A block that lies inside one tensor is
read where it is; one that spans several is gathered into a workspace first.

Measured (five million float32 coordinates, one thread of a Zen 5): two layers of 20 are fastest at
2560 to 8192 coordinates a block, one of 8 or 4 from 12288 on, the practical rule without networks
from 49152 on, as a block's operations must outweigh their calls. Half of that costs 6 to 20 % and
keeps a step's temporaries at 3 to 5 MB: by count two to three times the state of a block, and what
torch's allocator loses between pieces is as much again.
Reading in place saves a seventh against gathering every block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.backends.base import (
    Backend,
    Batch,
    Slot,
    cuts,
    free_to_read,
    moved,
    overwrite_,
)
from learned_optim.backends.last_stage import Unfinished
from learned_optim.rules import Coordinates, State, UpdateRule
from learned_optim.rules.deferral import defer

# On a CPU: numbers of state in a block, and the least and most coordinates.
CPU_STATE = 1 << 17
CPU_BLOCKS = (2048, 32768)
# Other devices: long enough to hide the launches, short enough to bound the temporaries (about
# 1 KiB a coordinate for two layers of 20).
DEVICE_BLOCK = 1 << 17
TOGETHER = 4096  # coordinates up to which a compiler gets tensors in one block


@dataclass
class Flat:
    """A slot as rows of coordinates: `(N,)` and `(rows, N)` views of its tensors.

    `copies` holds (tensor, flat copy) of those that have no such view, to be written back.
    """

    grad: Tensor
    param: Tensor
    state: State
    copies: list[tuple[Tensor, Tensor]]


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
    return Flat(slot.grad.reshape(count), param, state, copies)


def stream(lengths: list[int], block: int) -> Iterator[list[Piece]]:
    """Cut the tensors, laid end to end, into blocks; empty tensors are in none."""
    current: list[Piece] = []
    room = block
    for slot, length in enumerate(lengths):
        start = 0
        while start < length:
            piece = Piece(slot, start, min(start + room, length))
            current.append(piece)
            start, room = piece.stop, room - piece.length
            if not room:
                yield current
                current, room = [], block
    if current:
        yield current


def few(lengths: list[int]) -> list[list[Piece]]:
    """As few blocks as copy little: one for all small tensors, one for each large one.

    For a compiler, which fuses by itself, and into whose graph a loop is unrolled.
    """
    whole = [Piece(slot, 0, length) for slot, length in enumerate(lengths) if length]
    small = [piece for piece in whole if piece.length <= TOGETHER]
    large = [[piece] for piece in whole if piece.length > TOGETHER]
    return [small, *large] if small else large


class Eager(Backend):
    """Any rule, any device, any dtype."""

    name: ClassVar[str] = "eager"

    def __init__(self) -> None:
        self._workspaces: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}

    @staticmethod
    def supports(rule: UpdateRule, device: torch.device, dtype: torch.dtype) -> str | None:
        """Everything."""
        return None

    def block_size(self, batch: Batch) -> int:
        """Coordinates in a block: a power of two, but for the limits."""
        if batch.device.type != "cpu":
            return DEVICE_BLOCK
        rows = sum(spec.rows for spec in batch.rule.state_spec.values() if spec.per == "coordinate")
        least, most = CPU_BLOCKS
        return min(max(1 << (CPU_STATE // max(rows, 1)).bit_length() - 1, least), most)

    def update(
        self, batch: Batch, coords: Coordinates, state: State, signals: Tensor
    ) -> tuple[Tensor, State]:
        """The rule's `update` of a block."""
        return batch.rule.update(coords, state, signals, batch.weights)

    def sums(self, batch: Batch) -> Tensor:
        """See `Backend.sums`: tensor by tensor, block by block."""
        keys = batch.rule.keys_per("coordinate")
        rows = []
        for slot in batch.slots:
            flat, total = flatten(slot, keys), None
            for start, stop in cuts(slot.param.numel(), self.block_size(batch)):
                block = Piece(0, start, stop)
                coords, state = read(batch, flat, block)
                part = batch.rule.summarize(coords, state)
                total = part if total is None else total + part
            empty = torch.zeros(
                batch.rule.summary_size, dtype=batch.compute_dtype, device=batch.device
            )
            rows.append(empty if total is None else total)
        return torch.stack(rows)

    def move(self, batch: Batch, signals: Tensor, finite: Tensor | None) -> None:
        """See `Backend.move`."""
        keys = batch.rule.keys_per("coordinate")
        flats = [flatten(slot, keys) for slot in batch.slots]
        lengths = [flat.param.numel() for flat in flats]
        blocks = (
            few(lengths)
            if torch.compiler.is_compiling()
            else stream(lengths, self.block_size(batch))
        )
        params = {i: flat.param for i, flat in enumerate(flats)}
        unfinished = Unfinished(batch, params, owed_of(batch, flats), signals, finite)
        for block in blocks:
            self._move_block(batch, flats, block, signals, finite, unfinished)
            unfinished.move_whole_()
        unfinished.move_whole_()
        for flat in flats:
            for tensor, copy in flat.copies:
                tensor.copy_(copy.view(tensor.shape))

    def _move_block(
        self,
        batch: Batch,
        flats: list[Flat],
        block: list[Piece],
        signals: Tensor,
        finite: Tensor | None,
        unfinished: Unfinished,
    ) -> None:
        if len(block) == 1:
            coords, state = read(batch, flats[block[0].slot], block[0])
        else:
            coords, state = self._gather(batch, flats, block)
        of_block = per_coordinate(signals, block)
        step, new_state = self.update(batch, coords, state, of_block)
        keep = keeps(step, None if finite is None else per_coordinate(finite[None], block)[0])
        lengths = [piece.length for piece in block]
        steps, owing, owed = cut(step, lengths), batch.rule.owing, None
        if owing is not None and any(piece.slot not in unfinished for piece in block):
            step, owed = defer(step, state[owing[0]][owing[1]], of_block[-2:])
            owed = cut(owed, lengths)
        params = cut(moved(batch, coords.param, step), lengths)
        masks = [None] * len(block) if keep is None else cut(keep, lengths)
        states = {key: cut(value, lengths) for key, value in new_state.items()}
        for index, piece in enumerate(block):
            flat, here, mask = flats[piece.slot], slice(piece.start, piece.stop), masks[index]
            if piece.slot in unfinished:
                unfinished.put(piece.slot, piece.start, steps[index])
            else:
                overwrite_(flat.param[here], params[index], mask)
            for key, parts in states.items():
                overwrite_(flat.state[key][:, here], parts[index], mask)
            if owing and owed and piece.slot not in unfinished:
                overwrite_(flat.state[owing[0]][owing[1], here], owed[index], mask)

    def _gather(
        self, batch: Batch, flats: list[Flat], block: list[Piece]
    ) -> tuple[Coordinates, State]:
        """`read` for a block of several pieces, through the workspace."""
        pieces = [(flats[piece.slot], slice(piece.start, piece.stop)) for piece in block]
        grad = self._joined(batch, "grad", [flat.grad[here] for flat, here in pieces])
        param = self._joined(batch, "param", [flat.param[here] for flat, here in pieces])
        state = {
            key: self._joined(
                batch, f"state.{key}", [flat.state[key][:, here] for flat, here in pieces]
            )
            for key in flats[0].state
        }
        return Coordinates(grad.neg_() if batch.maximize else grad, param), state

    def _joined(self, batch: Batch, key: str, parts: list[Tensor]) -> Tensor:
        """The parts, `(..., n)` each, side by side in memory that is kept from step to step."""
        if torch.compiler.is_compiling():
            return torch.cat(parts, dim=-1).to(batch.compute_dtype)
        workspace = self._workspaces.setdefault((batch.device, batch.compute_dtype), {})
        shape = (*parts[0].shape[:-1], self.block_size(batch))
        if workspace.get(key, parts[0]).shape != shape:
            workspace[key] = torch.empty(shape, dtype=batch.compute_dtype, device=batch.device)
        length = sum(part.shape[-1] for part in parts)
        return torch.cat(parts, dim=-1, out=workspace[key][..., :length])


def cut(tensor: Tensor, lengths: list[int]) -> Sequence[Tensor]:
    """`split` of the last dimension; most blocks have one piece, which costs no call."""
    return [tensor] if len(lengths) == 1 else tensor.split(lengths, dim=-1)


def owed_of(batch: Batch, flats: list[Flat]) -> dict[int, Tensor]:
    """What is owed of each slot's coordinates, `(N,)`; none where the rule defers nothing."""
    if batch.rule.owing is None:
        return {}
    key, row = batch.rule.owing
    return {index: flat.state[key][row] for index, flat in enumerate(flats)}


def read(batch: Batch, flat: Flat, piece: Piece) -> tuple[Coordinates, State]:
    """The coordinates of one piece in the compute dtype: views where nothing is to convert."""
    here, dtype = slice(piece.start, piece.stop), batch.compute_dtype
    grad = flat.grad[here].to(dtype)
    state = {key: value[:, here].to(dtype) for key, value in flat.state.items()}
    return Coordinates(-grad if batch.maximize else grad, flat.param[here].to(dtype)), state


def keeps(step: Tensor, finite: Tensor | None) -> Tensor | None:
    """Where a step is taken, `(N,)`; None: everywhere, as far as that can be known for free."""
    if finite is None and free_to_read(step):
        # A tenth of what isfinite takes: an extreme is infinite or NaN if any number is.
        low, high = step.aminmax()
        if isfinite(low.item()) and isfinite(high.item()):
            return None
    keep = step.isfinite()
    return keep if finite is None else keep & finite


def per_coordinate(rows: Tensor, block: list[Piece]) -> Tensor:
    """`(M, T)`, a column a tensor -> `(M, 1)` for a block of one tensor, else `(M, length)`."""
    if len(block) == 1 or not rows.shape[0]:
        return rows[:, block[0].slot, None]
    return torch.cat([rows[:, p.slot, None].expand(-1, p.length) for p in block], dim=1)
