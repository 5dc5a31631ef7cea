"""The paper's rule in torch's operations alone, as fast as these go: where there are no kernels.

Blocks, gathering and masks are the reference's (`eager`); only `update` is done in memory that is
planned once (`learned_optim.planned`), and in larger blocks, as its calls are few and its memory is
known: 1 to 3 MB for float32, kept from step to step.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor

from learned_optim.backends.base import Batch
from learned_optim.backends.blocks import is_real
from learned_optim.backends.eager import Eager
from learned_optim.cells import affine
from learned_optim.planned import PlannedLstms, memory_rows
from learned_optim.rules import Coordinates, State, UpdateRule, Weights
from learned_optim.rules.l2l import L2L

MEMORY = 760_000  # numbers that a block may take
MOST = 16384  # coordinates in one


class PlannedL2L(Eager):
    """`l2l` with LSTM cells, on the CPU; float32 and float64."""

    name: ClassVar[str] = "planned"

    def __init__(self) -> None:
        super().__init__()
        self._made: list[tuple[Weights, PlannedLstms]] = []

    @staticmethod
    def supports(rule: UpdateRule, device: torch.device, dtype: torch.dtype) -> str | None:
        """`l2l` with the paper's cells, where nothing is compiled."""
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device.type}"
        if type(rule) is not L2L or rule.cell != "lstm":
            return "it knows the rule 'l2l' with LSTM cells alone"
        if torch.compiler.is_compiling():
            return "a compiler plans memory by itself"
        return None

    def block_size(self, batch: Batch) -> int:
        """A power of two, within `MEMORY`."""
        rule = _l2l(batch)
        rows = sum(memory_rows(rule.layers, rule.hidden, rule.inputs))
        return min(1 << (MEMORY // rows).bit_length() - 1, MOST)

    def update(
        self, batch: Batch, coords: Coordinates, state: State, signals: Tensor
    ) -> tuple[Tensor, State]:
        """See `Eager.update`; the state that it returns lasts until the next call."""
        if not is_real(coords):
            return super().update(batch, coords, state, signals)
        rule, cells = _l2l(batch), self._cells(batch)
        cells.features(coords.grad.shape[-1]).copy_(rule.features(coords))
        h, new = cells.step(state["cell"])
        step = affine(batch.weights["head.w"], h, batch.weights["head.b"]).squeeze(-2)
        return step.mul_(rule.scale), {"cell": new}

    def _cells(self, batch: Batch) -> PlannedLstms:
        """With the batch's weights; made once."""
        rule = _l2l(batch)
        for weights, cells in self._made:
            if weights is batch.weights:
                return cells
        layers = [rule.layer_weights(batch.weights, layer) for layer in range(rule.layers)]
        self._made.append((batch.weights, PlannedLstms(layers, self.block_size(batch))))
        return self._made[-1][1]


def _l2l(batch: Batch) -> L2L:
    """The batch's rule, which is what `supports` asks for."""
    return cast("L2L", batch.rule)
