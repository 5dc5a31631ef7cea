"""A photograph as a function of the place."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learned_optim.tasks import nets, pictures
from learned_optim.tasks.base import Batch, Params, Split, Task


@dataclass(frozen=True)
class Photograph(Task):
    """Squared error of a photograph's colours at random pixels, from Fourier features of the place.

    Tancik et al., "Fourier features let networks learn high frequency functions in low
    dimensional domains", 2020, section 5 and 6.1. Paper / ours: all of 512 x 512 pixels, 256
    features / random pixels of `side` x `side`, `features`.

    Parameters `layer<i>...`; constants `speeds` `(2, features)`, `pixels` `(side * side, 3)` in
    [0, 1]; minibatch `index` `(batch_size,)` int64.
    """

    picture: str = "tubingen"
    side: int = 64
    features: int = 32
    speed: float = 6.0  # standard deviation of the waves, in periods a picture
    width: int = 64
    depth: int = 3
    batch_size: int = 256

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Waves of the run's own; layers of ReLUs."""
        sizes = (2 * self.features, *[self.width] * self.depth, 3)
        picture = pictures.square(pictures.photograph(self.picture), self.side)
        pixels = picture.flatten(1).mT.mul(0.5).add(0.5).contiguous()
        speeds = nets.normal(generator, (2, self.features), 2 * math.pi * self.speed)
        return nets.mlp_params(generator, sizes), {"speeds": speeds, "pixels": pixels}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """Pixels drawn with replacement; there is nothing to hold out."""
        return {"index": nets.integers(generator, self.side**2, self.batch_size)}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean over pixels and colours."""
        index = batch["index"]
        row, column = torch.div(index, self.side, rounding_mode="floor"), index % self.side
        angles = torch.stack((row, column), -1) / self.side @ batch["speeds"]
        x = torch.cat((angles.sin(), angles.cos()), -1)
        colours = nets.mlp(params, x, self.depth + 1, "relu").sigmoid()
        return (colours - batch["pixels"][index]).square().mean()
