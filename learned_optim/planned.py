"""`cells.lstm`, stacked, in memory that is planned once: for steps without a derivative.

The same numbers but for rounding. Most of what the pure cell pays for beside its products and
sigmoids are copies and calls. Here the bias is a column of the product, beside a row of ones; the
factor -2 of `cells.lstm` is in the weights; and gates become, in place, what they make: the output
gate h, the forget gate c. So the new state is there without a copy, and the gates of the next layer
begin where it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from learned_optim.cells import CellWeights

ORDER = (2, 1, 0, 3)  # of the gates i, f, o, g: first what becomes h, then what becomes c


class Layer(NamedTuple):
    """Where a layer's numbers are for blocks of one size, `(rows, count)` each.

    Attributes:
        weights: see `_joined`.
        x: all that is multiplied: `below`, `before` and a row of ones.
        below: its input, of the features or the layer below.
        before: its h of the step before.
        gates: all four; then h, c and what is left of the other two.
    """

    weights: Tensor
    x: Tensor
    below: Tensor
    before: Tensor
    gates: Tensor
    h: Tensor
    c: Tensor
    i: Tensor
    s: Tensor


class PlannedLstms:
    """A stack of LSTM layers for blocks of coordinates, one block at a time.

    Args:
        layers: the weights of each, of one dtype, see `cells.lstm`; the input of all but the first
            is the output h of the one before.
        block: the most coordinates in a block.
    """

    def __init__(self, layers: Sequence[CellWeights], block: int) -> None:
        self._weights = [_joined(weights) for weights in layers]
        self._units = layers[0]["w_hh"].shape[-1]
        rows = memory_rows(len(layers), self._units, layers[0]["w_ih"].shape[-1])
        self._inputs, self._gates = (self._weights[0].new_empty(n * block) for n in rows)
        self._layers: list[Layer] = []

    def features(self, count: int) -> Tensor:
        """Where the first layer's input is to be written before each `step`, `(F, count)`."""
        if not self._layers or self._layers[0].x.shape[-1] != count:
            self._layers = self._laid_out(count)
        return self._layers[0].below

    def step(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of all layers, from what was written into `features`.

        Args:
            state: `(2 * H * layers, count)`, layer after layer, in each h then c, in the weights'
                dtype; it stays as it is. `count` is that of `features`.

        Returns:
            The last layer's h, `(H, count)`, and the new state; both last until the next step.
        """
        old, layers = state.split(self._units), self._layers
        for index, layer in enumerate(layers):
            if index:
                layer.below.copy_(layers[index - 1].h)
            layer.before.copy_(old[2 * index])
            h, c, i, s = layer.h, layer.c, layer.i, layer.s
            torch.mm(layer.weights, layer.x, out=layer.gates).sigmoid_()
            torch.addcmul(i, c, old[2 * index + 1], out=c).addcmul_(i, s, value=-2)
            torch.addcmul(h, h, torch.mul(c, -2, out=s).sigmoid_(), value=-2, out=h)
        return layers[-1].h, _rows(self._gates, 0, state.shape[0], state.shape[1])

    def _laid_out(self, count: int) -> list[Layer]:
        """The layers for blocks of one size, without a gap: tensors are then contiguous."""
        found, start, units = [], 0, self._units
        for index, weights in enumerate(self._weights):
            x = _rows(self._inputs, start, weights.shape[-1], count)
            start += weights.shape[-1]
            below, before, ones = x.split((weights.shape[-1] - units - 1, units, 1))
            ones.fill_(1)
            gates = _rows(self._gates, 2 * units * index, 4 * units, count)
            found.append(Layer(weights, x, below, before, gates, *gates.split(units)))
        return found


def memory_rows(layers: int, units: int, features: int) -> tuple[int, int]:
    """Numbers a coordinate of `PlannedLstms`' memory: the inputs' and the gates'."""
    inputs = features + (layers - 1) * units + layers * (units + 1)
    return inputs, 2 * units * (layers + 1)


def _joined(weights: CellWeights) -> Tensor:
    """`(4 H, F + H + 1)`, gates in `ORDER`: for the input, h, the ones; rows of g times -2."""
    joined = torch.cat((weights["w_ih"], weights["w_hh"], weights["b"].unsqueeze(-1)), dim=-1)
    gates = joined.chunk(4)
    return torch.cat([gates[gate] * (-2 if gate == 3 else 1) for gate in ORDER])


def _rows(memory: Tensor, start: int, rows: int, count: int) -> Tensor:
    """`(rows, count)` from row `start` on, rows of `count` numbers each."""
    return memory[start * count : (start + rows) * count].view(rows, count)
