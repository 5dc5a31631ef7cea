"""Regression of a few hundred examples, drawn once, so that a network can learn them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Floats, Ints, Strings, axis
from learned_optim.tasks.base import Batch, Params, Split, Task

_TEACHER = 12  # hidden units
_TEST = 256  # examples


@dataclass(frozen=True)
class FiniteRegressionTask(Task):
    """Mean squared error of an MLP on tabular data with correlated features.

    Features have mean 0 and variance 1; targets are `target_scale` times the sum of a tanh network
    of them, label noise (together of variance 1) and `offset`. Parameters `layer<i>.weight`,
    `layer<i>.bias`; constants `x` `(samples + 256, inputs)` and `y` `(samples + 256,)`, the last
    256 for the test; minibatch `index` `(batch_size,)` of them.
    """

    inputs: int
    samples: int
    depth: int
    width: int
    activation: str
    scheme: str
    target_scale: float
    noise: float
    offset: float
    batch_size: int

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """The network, biases zero, and the examples: other ones for each run."""
        sizes = (self.inputs, *([self.width] * self.depth), 1)
        params = nets.mlp_params(generator, sizes, self.scheme)
        count = self.samples + _TEST
        mix = nets.normal(generator, (self.inputs, self.inputs))
        mix.diagonal().add_(1.0)
        x = _standardised(nets.normal(generator, (count, self.inputs)) @ mix)
        hidden = torch.tanh(x @ nets.weight(generator, (_TEACHER, self.inputs), "lecun").mT)
        clean = _standardised(hidden @ nets.weight(generator, (1, _TEACHER), "lecun").squeeze(0))
        label_noise = nets.normal(generator, (count,), self.noise)
        y = (1 - self.noise**2) ** 0.5 * clean + label_noise + self.offset
        return params, {"x": x, "y": self.target_scale * y}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """`batch_size` examples drawn with replacement."""
        first, count = (self.samples, _TEST) if split == "test" else (0, self.samples)
        return {"index": first + nets.integers(generator, count, self.batch_size)}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """On the targets' own scale."""
        x, y = batch["x"][batch["index"]], batch["y"][batch["index"]]
        x = x.to(params["layer0.weight"].dtype)
        output = nets.mlp(params, x, self.depth + 1, self.activation).squeeze(-1)
        return (output - y).square().mean()


def _standardised(values: Tensor) -> Tensor:
    """Columns of mean 0 and variance 1."""
    return (values - values.mean(0)) / values.std(0)


@dataclass(frozen=True)
class FiniteRegression(AxesFamily):
    """Regression of generated data, few inputs and few examples.

    Args (all axes, see `axes`):
        inputs: dimension of an example.
        samples: examples to learn.
        depth: hidden layers.
        width: units in each.
        activation: one of `nets.ACTIVATIONS`.
        scheme: initialisation, one of `nets.SCHEMES`; biases start at zero.
        target_scale: standard deviation of the targets; nobody rescaled them.
        noise: share of it that is label noise, in the root of the variance, in [0, 1].
        offset: mean of the targets, in standard deviations.
        batch_size: examples in a minibatch.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "finite_regression"
    task = FiniteRegressionTask

    inputs: Ints = axis(3, 6, 14, 20, within=(1, 4096))
    samples: Ints = axis(150, 250, 500, within=(2, 100_000))
    depth: Ints = axis(1, 2, 3, within=(0, 64))
    width: Ints = axis(24, 48, 96, within=(1, 16_384))
    activation: Strings = axis("relu", "tanh", "gelu", among=nets.ACTIVATIONS)
    scheme: Strings = axis("he", "torch", among=nets.SCHEMES)
    target_scale: Floats = axis(1.0, 10.0, 100.0, within=(1e-6, 1e6))
    noise: Floats = axis(0.3, 0.7, within=(0.0, 1.0))
    offset: Floats = axis(0.0, 2.0, within=(-100.0, 100.0))
    batch_size: Ints = axis(24, 48, 96, within=(1, 65_536))
