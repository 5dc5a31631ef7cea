"""Autoencoders of images with a bottleneck."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Floats, Ints, Strings, axis
from learned_optim.tasks.base import Batch, Params
from learned_optim.tasks.images import ImageTask
from learned_optim.tasks.sources import IMAGES

OBJECTIVES = ("squared_error", "cross_entropy")


@dataclass(frozen=True)
class AutoencoderTask(ImageTask):
    """Pixels -> `depth` layers of `width` -> `bottleneck` -> the same layers mirrored -> pixels.

    The shape is that of Hinton and Salakhutdinov, "Reducing the dimensionality of data with neural
    networks", 2006. Paper / ours: a linear code / the code has the activation too. Parameters
    `layer<i>.weight`, `layer<i>.bias`; minibatch `x` as `ImageSource` draws it.
    """

    depth: int
    width: int
    bottleneck: int
    activation: str
    objective: str
    scheme: str
    gain: float

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of all layers, input and output included."""
        pixels = torch.Size(self.source.shape).numel()
        half = (pixels, *([self.width] * self.depth))
        return (*half, self.bottleneck, *half[::-1])

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Weights by `nets.weight`, biases zero; there are no constants."""
        return nets.mlp_params(generator, self.sizes, self.scheme, self.gain), {}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean over pixels and images of the squared error, or of the binary cross entropy.

        The cross entropy takes the outputs as logits, so it is finite wherever they are.
        """
        x = batch["x"].flatten(1).to(params["layer0.weight"].dtype)
        output = nets.mlp(params, x, len(self.sizes) - 1, self.activation)
        if self.objective == "cross_entropy":
            return functional.binary_cross_entropy_with_logits(output, x)
        return (output - x).square().mean()


@dataclass(frozen=True)
class Autoencoder(AxesFamily):
    """MLP autoencoders.

    Args (all axes, see `axes`):
        dataset: "digits", "mnist" or "cifar10".
        depth: hidden layers on each side of the bottleneck.
        width: units in each.
        bottleneck: units of the code.
        activation: one of `nets.ACTIVATIONS`.
        objective: one of `OBJECTIVES`.
        scheme: initialisation, one of `nets.SCHEMES`; biases start at zero.
        gain: factor on all initial weights.
        batch_size: images in a minibatch.
        pool: average pooling of the images.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "autoencoder"
    task = AutoencoderTask

    dataset: Strings = axis("digits", among=IMAGES)
    depth: Ints = axis(1, 2, within=(0, 32))
    width: Ints = axis(32, 64, within=(1, 16_384))
    bottleneck: Ints = axis(4, 8, within=(1, 4096))
    activation: Strings = axis("relu", "tanh", "gelu", "elu", among=nets.ACTIVATIONS)
    objective: Strings = axis("squared_error", "cross_entropy", among=OBJECTIVES)
    scheme: Strings = axis("he", "glorot", "torch", among=nets.SCHEMES)
    gain: Floats = axis(1.0, within=(0.0, 100.0))
    batch_size: Ints = axis(16, 32, 64, within=(1, 65_536))
    pool: Ints = axis(1, within=(1, 4))
