"""Multilayer perceptrons that classify images or clusters, with the axes that practice varies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Bools, Floats, Ints, Strings, axis
from learned_optim.tasks.base import Batch, Params, Split, Task
from learned_optim.tasks.sources import IMAGES, Source, source


@dataclass(frozen=True)
class MLPClassificationTask(Task):
    """`depth` hidden layers of `width` units, normalised after the product if `layer_norm`.

    Parameters `layer<i>.weight` `(out, in)`, `layer<i>.bias`, and with layer norm
    `layer<i>.norm.weight`, `layer<i>.norm.bias`; minibatches as `sources` draws them.
    """

    dataset: str
    depth: int
    width: int
    activation: str
    layer_norm: bool
    scheme: str
    gain: float
    batch_size: int
    objective: str
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

    def init_params(self, generator: torch.Generator) -> Params:
        """Weights by `nets.weight`, biases zero."""
        inputs = torch.Size(self.source.shape).numel()
        sizes = (inputs, *([self.width] * self.depth), self.classes)
        return nets.mlp_params(generator, sizes, self.scheme, self.gain, norm=self.layer_norm)

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """The parameters, and the source's constants."""
        return self.init_params(generator), self.source.constants(generator)

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """`batch_size` examples drawn with replacement."""
        return self.source.batch(generator, self.batch_size, split)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """`nets.classification_loss` on the minibatch."""
        x = self.source.inputs(batch).flatten(1).to(params["layer0.weight"].dtype)
        logits = nets.mlp(params, x, self.depth + 1, self.activation, norm=self.layer_norm)
        return nets.classification_loss(logits, batch["y"], self.objective)


@dataclass(frozen=True)
class MLPClassification(AxesFamily):
    """MLP classifiers.

    Args (all axes, see `axes`):
        dataset: "digits", "mnist", "cifar10", or "clusters" (generated, see `ClusterSource`).
        depth: number of hidden layers.
        width: units in each.
        activation: one of `nets.ACTIVATIONS`.
        layer_norm: whether hidden layers are normalised before the activation.
        scheme: initialisation, one of `nets.SCHEMES`; biases start at zero.
        gain: factor on all initial weights.
        batch_size: examples in a minibatch.
        objective: one of `nets.CLASSIFICATION_LOSSES`.
        pool: average pooling of images.
        features: dimension of clusters.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "mlp_classification"
    task = MLPClassificationTask

    dataset: Strings = axis("digits", "clusters", among=(*IMAGES, "clusters"))
    depth: Ints = axis(1, 2, 3, within=(0, 64))
    width: Ints = axis(16, 32, 64, within=(1, 16_384))
    activation: Strings = axis("relu", "tanh", "gelu", "sigmoid", "elu", among=nets.ACTIVATIONS)
    layer_norm: Bools = axis(False, False, True)
    scheme: Strings = axis("he", "glorot", "torch", among=nets.SCHEMES)
    gain: Floats = axis(0.5, 1.0, 1.0, 2.0, within=(0.0, 100.0))
    batch_size: Ints = axis(16, 32, 64, 128, within=(1, 65_536))
    objective: Strings = axis(
        "cross_entropy", "cross_entropy", "squared_error", among=nets.CLASSIFICATION_LOSSES
    )
    pool: Ints = axis(1, within=(1, 4))
    features: Ints = axis(16, within=(1, 4096))
