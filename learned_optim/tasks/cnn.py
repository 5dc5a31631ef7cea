"""Small convolutional classifiers of images."""

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

HEADS = ("flatten", "average")


@dataclass(frozen=True)
class CNNTask(ImageTask):
    """`depth` convolutions 3x3 with bias, each followed by the activation, and one dense layer.

    All but the first have stride 2 and twice the channels, from `width` on. Parameters
    `conv<i>.weight` `(out, in, 3, 3)`, `conv<i>.bias`, `head.weight`, `head.bias`; minibatch `x`
    `(batch_size, C, H, W)` in [0, 1], centred in the loss, and `y` `(batch_size,)`.
    """

    depth: int
    width: int
    activation: str
    head: str
    scheme: str
    gain: float

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Weights by `nets.weight`, biases zero; there are no constants."""
        channels, height, width = self.source.shape
        params: Params = {}
        for i in range(self.depth):
            outputs = self.width * 2**i
            params |= nets.conv_params(
                generator, f"conv{i}", channels, outputs, self.scheme, self.gain
            )
            stride = 1 if i == 0 else 2
            # A 3x3 convolution padded by 1.
            height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
            channels = outputs
        features = channels * (height * width if self.head == "flatten" else 1)
        params |= nets.dense_params(
            generator, "head", features, self.classes, self.scheme, self.gain
        )
        return params, {}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean cross entropy."""
        x = nets.centred(batch["x"]).to(params["head.weight"].dtype)
        for i in range(self.depth):
            x = nets.conv(params, f"conv{i}", x, stride=1 if i == 0 else 2)
            x = nets.ACTIVATION_FUNCTIONS[self.activation](x)
        x = x.flatten(1) if self.head == "flatten" else x.mean((-2, -1))
        return functional.cross_entropy(nets.dense(params, "head", x), batch["y"])


@dataclass(frozen=True)
class CNN(AxesFamily):
    """Convolutional classifiers.

    Args (all axes, see `axes`):
        dataset: "digits", "mnist" or "cifar10".
        depth: number of convolutions.
        width: channels of the first; each further one has twice as many.
        activation: one of `nets.ACTIVATIONS`.
        head: what the dense layer sees: "flatten", every position, or "average", their mean.
        scheme: initialisation, one of `nets.SCHEMES`; biases start at zero.
        gain: factor on all initial weights.
        batch_size: images in a minibatch.
        pool: average pooling of the images before the first layer.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "cnn"
    task = CNNTask

    dataset: Strings = axis("digits", among=IMAGES)
    depth: Ints = axis(2, 3, within=(1, 8))
    width: Ints = axis(4, 8, within=(1, 1024))
    activation: Strings = axis("relu", "relu", "gelu", "tanh", among=nets.ACTIVATIONS)
    head: Strings = axis("flatten", "average", among=HEADS)
    scheme: Strings = axis("he", "torch", among=nets.SCHEMES)
    gain: Floats = axis(1.0, within=(0.0, 100.0))
    batch_size: Ints = axis(16, 32, within=(1, 65_536))
    pool: Ints = axis(1, within=(1, 4))
