"""Fits of an image by a network with sine activations, as a function of the coordinates."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.tasks import datasets, nets
from learned_optim.tasks.axes import AxesFamily, Floats, Ints, Strings, axis
from learned_optim.tasks.base import Batch, Params, Split, Task

IMAGES = ("waves", "digits")
_WAVES = 8
_DIGITS_SIDE = 8


@dataclass(frozen=True)
class SineFitTask(Task):
    """Mean squared error over `batch_size` random pixels; every run fits an image of its own.

    `h <- sin(frequency * (W h + b))` in each of `depth` layers of `width`, then a linear one.
    Sitzmann et al., "Implicit neural representations with periodic activation functions", 2020,
    section 3.2. Paper / ours: all pixels in each step / random ones; frequency 30 / an axis, as the
    images here are small.

    Parameters `layer<i>.weight`, `layer<i>.bias`; constant `pixels` `(side * side,)` in [-1, 1];
    minibatch `index` `(batch_size,)` int64.
    """

    image: str
    side: int
    depth: int
    width: int
    frequency: float
    batch_size: int

    @property
    def pixels_a_side(self) -> int:
        """Of the image; a digit has eight."""
        return _DIGITS_SIDE if self.image == "digits" else self.side

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Weights U(-a, a), a = 1/2 (the inverse of the inputs), then sqrt(6 / width) / frequency.

        Biases U(-1/sqrt(in), 1/sqrt(in)), as in the paper's released code.
        """
        sizes = (2, *([self.width] * self.depth), 1)
        params: Params = {}
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            bound = 0.5 if i == 0 else math.sqrt(6.0 / fan_in) / self.frequency
            params[f"layer{i}.weight"] = nets.uniform(generator, (fan_out, fan_in), bound)
            params[f"layer{i}.bias"] = nets.uniform(generator, (fan_out,), fan_in**-0.5)
        draw = _digit if self.image == "digits" else _waves
        return params, {"pixels": draw(generator, self.pixels_a_side)}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """Pixels drawn with replacement; there is nothing to hold out."""
        return {"index": nets.integers(generator, self.pixels_a_side**2, self.batch_size)}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """On the pixels of the minibatch."""
        index, side = batch["index"], self.pixels_a_side
        dtype = params["layer0.weight"].dtype
        row, column = (torch.div(index, side, rounding_mode="floor"), index % side)
        x = torch.stack([row, column], dim=-1).to(dtype) * (2.0 / (side - 1)) - 1.0
        for i in range(self.depth):
            x = torch.sin(self.frequency * nets.dense(params, f"layer{i}", x))
        output = nets.dense(params, f"layer{self.depth}", x).squeeze(-1)
        return (output - batch["pixels"][index]).square().mean()


def _waves(generator: torch.Generator, side: int) -> Tensor:
    """A sum of plane waves, of up to three periods over the image, scaled to [-1, 1]."""
    direction = nets.uniform(generator, (_WAVES, 2), 3.0 * math.pi)
    phase = nets.uniform(generator, (_WAVES, 1), math.pi)
    grid = torch.linspace(-1.0, 1.0, side, device=generator.device)
    points = torch.cartesian_prod(grid, grid)
    image = torch.sin(direction @ points.mT + phase).sum(0)
    return image / image.abs().max()


def _digit(generator: torch.Generator, side: int) -> Tensor:
    images, labels = datasets.load("digits", "train", generator.device)
    index = nets.integers(generator, len(labels), 1)
    return nets.centred(datasets.scaled(images[index])).flatten()


@dataclass(frozen=True)
class SineFit(AxesFamily):
    """Sine networks fitted to images.

    Args (all axes, see `axes`):
        image: "waves", smooth and generated, or "digits", one of scikit-learn's.
        side: pixels of a side of "waves"; digits have 8.
        depth: layers with a sine.
        width: units in each.
        frequency: factor inside the sine.
        batch_size: pixels in a minibatch.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "sine_fit"
    task = SineFitTask

    image: Strings = axis("waves", "waves", "digits", among=IMAGES)
    side: Ints = axis(16, 32, within=(2, 4096))
    depth: Ints = axis(1, 2, within=(1, 32))
    width: Ints = axis(16, 32, 64, within=(1, 4096))
    frequency: Floats = axis(10.0, 30.0, within=(1e-3, 1e3))
    batch_size: Ints = axis(64, 128, within=(1, 1_000_000))
