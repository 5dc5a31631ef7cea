"""The reference backend: torch operations on blocks of coordinates.

The coordinates of a batch are dealt with in blocks of a fixed size: small tensors share a block,
large ones are cut (`blocks`). So every temporary is as large as a block and stays in the cache, and
the allocator hands the same few buffers out again. A block that lies inside one tensor is read
where it is; one that spans several is gathered into a workspace first.

Measured (five million float32 coordinates, one thread of a Zen 5): two layers of 20 are fastest at
2560 to 8192 coordinates a block, one of 8 or 4 from 12288 on, the practical rule without networks
from 49152 on, as a block's operations must outweigh their calls. Half of that costs 6 to 20 % and
keeps a step's temporaries at 3 to 5 MB: by count two to three times the state of a block, and what
torch's allocator loses between pieces is as much again.
Reading in place saves a seventh against gathering every block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.backends.base import Backend, Batch, cuts, free_to_read, moved, overwrite_
from learned_optim.backends.blocks import (
    SHARING,
    Flat,
    Piece,
    few,
    flatten,
    per_coordinate,
    read,
    stacked,
    stream,
)
from learned_optim.backends.last_stage import Unfinished, take_
from learned_optim.rules import Coordinates, State, UpdateRule
from learned_optim.rules.deferral import defer

# On a CPU: numbers of state in a block, and the least and most coordinates.
CPU_STATE = 1 << 17
CPU_BLOCKS = (2048, 32768)
# Other devices: long enough to hide the launches, short enough to bound the temporaries (about
# 1 KiB a coordinate for two layers of 20).
DEVICE_BLOCK = 1 << 17


@dataclass
class Work:
    """What a call of `Backend.move` is about, and where its results go.

    Attributes:
        batch: T parameters.
        flats: they as rows of coordinates.
        signals: `(M, T)`.
        finite: `(T,)`, or None.
        unfinished: takes the steps that wait for the last stage.
    """

    batch: Batch
    flats: list[Flat]
    signals: Tensor
    finite: Tensor | None
    unfinished: Unfinished

    def put(self, piece: Piece, step: Tensor, state: State, keep: Tensor | None) -> None:
        """A block of one tensor: in place, where nothing stands against it."""
        here, flat = slice(piece.start, piece.stop), self.flats[piece.slot]
        for key, value in state.items():
            overwrite_(flat.state[key][:, here], value, keep)
        if piece.slot in self.unfinished:
            self.unfinished.put(piece.slot, piece.start, step)
            return
        owed, terms = flat.owed(self.batch.rule), self.signals[-2:, piece.slot]
        owed = None if owed is None else owed[here]
        take_(self.batch, flat.param[here], owed, step, terms, keep)

    def put_all(
        self,
        block: list[Piece],
        coords: Coordinates,
        state: State,
        signals: Tensor,
        step: Tensor,
        new_state: State,
        keep: Tensor | None,
    ) -> None:
        """A block of several: what was gathered is dealt out again.

        Args:
            block: the pieces, N coordinates together.
            coords: of all of them, `(N,)`.
            state: as it was.
            signals: `(M, N)`.
            step: `(N,)`.
            new_state: as it is now.
            keep: where it is, `(N,)`; None: everywhere.
        """
        lengths = [piece.length for piece in block]
        steps, owing = step.split(lengths), self.batch.rule.owing
        owed: Sequence[Tensor] = ()
        if owing is not None and any(piece.slot not in self.unfinished for piece in block):
            step, left = defer(step, state[owing[0]][owing[1]], signals[-2:])
            owed = left.split(lengths)
        params = moved(self.batch, coords.param, step).split(lengths)
        masks = [None] * len(block) if keep is None else keep.split(lengths)
        states = {key: value.split(lengths, dim=1) for key, value in new_state.items()}
        for index, piece in enumerate(block):
            flat, here, mask = self.flats[piece.slot], slice(piece.start, piece.stop), masks[index]
            for key, parts in states.items():
                overwrite_(flat.state[key][:, here], parts[index], mask)
            if piece.slot in self.unfinished:
                self.unfinished.put(piece.slot, piece.start, steps[index])
                continue
            overwrite_(flat.param[here], params[index], mask)
            if owing and owed:
                overwrite_(flat.state[owing[0]][owing[1], here], owed[index], mask)


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

    def summarize(self, batch: Batch, coords: Coordinates, state: State) -> Tensor:
        """The rule's `summarize` of a block."""
        return batch.rule.summarize(coords, state)

    def update(
        self, batch: Batch, coords: Coordinates, state: State, signals: Tensor
    ) -> tuple[Tensor, State]:
        """The rule's `update` of a block."""
        return batch.rule.update(coords, state, signals, batch.weights)

    def sums(self, batch: Batch) -> Tensor:
        """See `Backend.sums`: block by block, or many small tensors of one size as a stack."""
        rule, block = batch.rule, self.block_size(batch)
        flats = [flatten(slot, rule.keys_per("coordinate")) for slot in batch.slots]
        none = torch.zeros(rule.summary_size, dtype=batch.compute_dtype, device=batch.device)
        found = [none] * len(flats)
        alike: dict[int, list[int]] = {}
        for index, flat in enumerate(flats):
            alike.setdefault(flat.param.numel(), []).append(index)
        for length, members in alike.items():
            if SHARING * length > block:
                for index in members:
                    for ends in cuts(length, block):
                        coords, state = read(batch, flats[index], Piece(0, *ends))
                        found[index] = found[index] + self.summarize(batch, coords, state)
            elif length:
                for start, stop in cuts(len(members), block // length):
                    some = members[start:stop]
                    rows = rule.summarize(*stacked(batch, [flats[i] for i in some]))
                    for index, row in zip(some, rows.unbind(), strict=True):
                        found[index] = row
        return torch.stack(found)

    def move(self, batch: Batch, signals: Tensor, finite: Tensor | None) -> None:
        """See `Backend.move`."""
        keys = batch.rule.keys_per("coordinate")
        flats = [flatten(slot, keys) for slot in batch.slots]
        lengths = [flat.param.numel() for flat in flats]
        waits = [batch.rule.waits(slot.shape) for slot in batch.slots]
        blocks = (
            few(lengths)
            if torch.compiler.is_compiling()
            else stream(lengths, waits, self.block_size(batch))
        )
        params = {i: flat.param for i, flat in enumerate(flats)}
        rows = {i: flat.owed(batch.rule) for i, flat in enumerate(flats)}
        owed = {i: row for i, row in rows.items() if row is not None}
        unfinished = Unfinished(batch, params, owed, signals, finite)
        work = Work(batch, flats, signals, finite, unfinished)
        for block in blocks:
            self._move_block(work, block)
            unfinished.move_whole_()
        unfinished.move_whole_()
        for flat in flats:
            for tensor, copy in flat.copies:
                tensor.copy_(copy.view(tensor.shape))

    def _move_block(self, work: Work, block: list[Piece]) -> None:
        batch, alone = work.batch, len(block) == 1
        if alone:
            coords, state = read(batch, work.flats[block[0].slot], block[0])
        else:
            coords, state = self._gather(batch, work.flats, block)
        signals = per_coordinate(work.signals, block)
        step, new_state = self.update(batch, coords, state, signals)
        finite = work.finite
        keep = keeps(step, None if finite is None else per_coordinate(finite[None], block)[0])
        if alone:
            work.put(block[0], step, new_state, keep)
        else:
            work.put_all(block, coords, state, signals, step, new_state, keep)

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


def keeps(step: Tensor, finite: Tensor | None) -> Tensor | None:
    """Where a step is taken, `(N,)`; None: everywhere, as far as that can be known for free."""
    if finite is None and free_to_read(step):
        # A tenth of what isfinite takes: an extreme is infinite or NaN if any number is.
        low, high = step.aminmax()
        if isfinite(low.item()) and isfinite(high.item()):
            return None
    keep = step.isfinite()
    return keep if finite is None else keep & finite
