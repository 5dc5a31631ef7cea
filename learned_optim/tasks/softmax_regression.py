"""Softmax regression of images: convex, with real data's spectrum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Floats, Ints, Strings, axis
from learned_optim.tasks.base import Batch, Params, Split, Task
from learned_optim.tasks.sources import IMAGES, Source, source


@dataclass(frozen=True)
class SoftmaxRegressionTask(Task):
    """`mean cross_entropy(x W' + b) + decay / 2 ||W||^2`.

    Parameters `layer.weight` `(10, features)`, `layer.bias`; minibatches as `sources` draws them.
    """

    dataset: str
    start: float
    decay: float
    batch_size: int
    pool: int
    features: int

    @property
    def source(self) -> Source:
        """Of the examples."""
        return source(self.dataset, self.pool, self.features)

    @property
    def classes(self) -> int:
        """Number of labels."""
        return self.source.classes

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Weights N(0, start^2), biases zero."""
        inputs = torch.Size(self.source.shape).numel()
        params = {
            "layer.weight": nets.normal(generator, (self.classes, inputs), self.start),
            "layer.bias": torch.zeros(self.classes, device=generator.device),
        }
        return params, self.source.constants(generator)

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """`batch_size` examples drawn with replacement."""
        return self.source.batch(generator, self.batch_size, split)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean cross entropy and the penalty."""
        weight = params["layer.weight"]
        logits = nets.dense(params, "layer", self.source.inputs(batch).flatten(1).to(weight.dtype))
        penalty = 0.5 * self.decay * weight.square().sum()
        return functional.cross_entropy(logits, batch["y"]) + penalty


@dataclass(frozen=True)
class SoftmaxRegression(AxesFamily):
    """Multinomial logistic regression.

    Args (all axes, see `axes`):
        dataset: "digits", "mnist", "cifar10", or "clusters" (generated, see `ClusterSource`).
        start: standard deviation of the weights at the start; zero is usual.
        decay: of the weights, in the loss.
        batch_size: examples in a minibatch.
        pool: average pooling of images.
        features: dimension of clusters.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "softmax_regression"
    task = SoftmaxRegressionTask

    dataset: Strings = axis("digits", "clusters", among=(*IMAGES, "clusters"))
    start: Floats = axis(0.0, 0.01, 0.1, within=(0.0, 100.0))
    decay: Floats = axis(0.0, 1e-3, within=(0.0, 100.0))
    batch_size: Ints = axis(16, 64, 128, within=(1, 65_536))
    pool: Ints = axis(1, within=(1, 4))
    features: Ints = axis(16, within=(1, 4096))
