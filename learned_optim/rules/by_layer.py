"""Two rules of the paper behind one: one set of weights for convolutions, another for the rest.

Andrychowicz et al. 2016, section 3.3: "the optimizer ... uses two LSTMs, one proposes parameter
updates for the fully connected layers and the other updates the convolutional layer parameters".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.rules.base import Clock, Coordinates, State, Weights
from learned_optim.rules.l2l import L2L

PARTS = ("conv", "rest")


@dataclass(frozen=True)
class ByLayer(L2L):
    """`L2L` twice, with one config: which of the two moves a tensor is decided by its shape.

    Tensors of three or more dimensions are convolution weights; biases, the scales of a
    normalisation and dense layers are "the rest". The paper does not say where the biases of its
    convolutions go. The weights are those of `L2L` under the prefixes `conv.` and `rest.`, so the
    rule can be used as one, or as two rules in two param groups (`split`); the second is faster,
    as `update` has to try both on every coordinate.
    """

    name: ClassVar[str] = "by_layer"

    @property
    def part(self) -> L2L:
        """The rule that both parts are."""
        return L2L(**self.config())  # type: ignore[arg-type]

    @staticmethod
    def part_of(shape: tuple[int, ...]) -> str:
        """One of `PARTS`, for a tensor of this shape."""
        return "conv" if len(shape) > 2 else "rest"

    def split(self, weights: Weights) -> dict[str, Weights]:
        """The weights of each of `PARTS`, named as `part` names them."""
        return {
            part: {
                key.removeprefix(f"{part}."): value
                for key, value in weights.items()
                if key.startswith(f"{part}.")
            }
            for part in PARTS
        }

    @staticmethod
    def joined(parts: dict[str, Weights]) -> Weights:
        """Inverse of `split`."""
        return {f"{part}.{key}": value for part in PARTS for key, value in parts[part].items()}

    @property
    def coordinatewise(self) -> bool:
        """Not so: a coordinate's step depends on the shape of its tensor."""
        return False

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of `L2L`, once with each prefix."""
        shapes = super().weight_shapes()
        return {f"{part}.{key}": shape for part in PARTS for key, shape in shapes.items()}

    def init_weights(self, generator: torch.Generator) -> Weights:
        """Two draws of `L2L.init_weights`."""
        return self.joined({part: self.part.init_weights(generator) for part in PARTS})

    def mirrored(self, weights: Weights) -> Weights:
        """Of each part, see `L2L.mirrored`."""
        return self.joined(
            {part: self.part.mirrored(each) for part, each in self.split(weights).items()}
        )

    def describe(self, shape: tuple[int, ...]) -> tuple[float, ...]:
        """One number: 1 for a convolution, else 0."""
        return (float(self.part_of(shape) == "conv"),)

    def control(
        self, sums: Tensor, facts: Tensor, state: State, clock: Clock, weights: Weights
    ) -> tuple[Tensor, State]:
        """Pass on what `describe` says, `(..., 1, T)`."""
        return facts.to(sums).expand(*sums.shape[:-2], *facts.shape[-2:]), state

    def update(
        self, coords: Coordinates, state: State, signals: Tensor, weights: Weights
    ) -> tuple[Tensor, State]:
        """Both parts on all coordinates; each coordinate takes its own."""
        sets = self.split(weights)
        conv, rest = (self.part.update(coords, state, signals, sets[part]) for part in PARTS)
        mine = signals.squeeze(-2) > 0
        step = torch.where(mine, conv[0], rest[0])
        cell = torch.where(mine.unsqueeze(-2), conv[1]["cell"], rest[1]["cell"])
        return step, {"cell": cell}
