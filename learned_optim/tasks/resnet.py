"""Residual networks with batch normalisation, which uses the statistics of the minibatch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Ints, Strings, axis
from learned_optim.tasks.base import Batch, Params
from learned_optim.tasks.images import ImageTask
from learned_optim.tasks.sources import IMAGES


@dataclass(frozen=True)
class ResNetTask(ImageTask):
    """A residual network for small images.

    He et al., "Deep residual learning for image recognition", 2016, section 4.2: a 3x3 convolution,
    `stages` of `blocks` pairs of 3x3 convolutions, each stage after the first with half the side
    and twice the channels, the mean over positions, a dense layer. Paper / ours: shortcuts padded
    with zeros where the shape changes / 1x1 convolutions; running statistics for evaluation / those
    of the minibatch always, as a loss has no memory.

    Parameters `stem.weight`, `stem.norm.weight|bias`, `<s>.<b>.conv0|conv1.weight`,
    `<s>.<b>.norm0|norm1.weight|bias`, `<s>.<b>.shortcut.weight`, `head.weight|bias`; minibatch `x`
    `(batch_size, C, H, W)` in [0, 1], centred in the loss, and `y` `(batch_size,)`.
    """

    stages: int
    blocks: int
    width: int

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Convolutions "he", without bias; norms one and zero; the head as torch.nn.Linear's."""
        device = generator.device
        params = nets.conv_params(
            generator, "stem", self.source.shape[0], self.width, bias=False
        ) | nets.norm_params("stem.norm", self.width, device)
        channels = self.width
        for stage, block, outputs, stride in self._blocks():
            name = f"{stage}.{block}"
            for i, inputs in enumerate((channels, outputs)):
                params |= nets.conv_params(
                    generator, f"{name}.conv{i}", inputs, outputs, bias=False
                )
                params |= nets.norm_params(f"{name}.norm{i}", outputs, device)
            if stride > 1:
                params |= nets.conv_params(
                    generator, f"{name}.shortcut", channels, outputs, size=1, bias=False
                )
            channels = outputs
        return params | nets.dense_params(generator, "head", channels, self.classes, "torch"), {}

    def _blocks(self) -> list[tuple[int, int, int, int]]:
        """Stage, block, channels and stride of each block."""
        return [
            (stage, block, self.width * 2**stage, 2 if stage > 0 and block == 0 else 1)
            for stage in range(self.stages)
            for block in range(self.blocks)
        ]

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean cross entropy."""
        x = nets.centred(batch["x"]).to(params["head.weight"].dtype)
        x = torch.relu(batch_norm(params, "stem.norm", nets.conv(params, "stem", x)))
        for stage, block, _, stride in self._blocks():
            name = f"{stage}.{block}"
            hidden = nets.conv(params, f"{name}.conv0", x, stride)
            hidden = torch.relu(batch_norm(params, f"{name}.norm0", hidden))
            hidden = nets.conv(params, f"{name}.conv1", hidden)
            shortcut = nets.conv(params, f"{name}.shortcut", x, stride) if stride > 1 else x
            x = torch.relu(batch_norm(params, f"{name}.norm1", hidden) + shortcut)
        logits = nets.dense(params, "head", x.mean((-2, -1)))
        return functional.cross_entropy(logits, batch["y"])


def batch_norm(params: Params, name: str, x: Tensor) -> Tensor:
    """`(B, C, H, W)` normalised over all but the channels."""
    scale, shift = params[f"{name}.weight"], params[f"{name}.bias"]
    return functional.batch_norm(x, None, None, scale, shift, training=True)


@dataclass(frozen=True)
class ResNet(AxesFamily):
    """Residual networks with batch normalisation.

    Args (all axes, see `axes`):
        dataset: "digits", "mnist" or "cifar10".
        stages: number of resolutions.
        blocks: residual blocks in each; ResNet-20 has 3 stages of 3.
        width: channels of the first stage; ResNet-20 has 16.
        batch_size: images in a minibatch.
        pool: average pooling of the images: 2 makes CIFAR-10 16x16, for a CPU.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "resnet"
    task = ResNetTask

    dataset: Strings = axis("digits", among=IMAGES)
    stages: Ints = axis(2, within=(1, 5))
    blocks: Ints = axis(1, within=(1, 32))
    width: Ints = axis(4, 8, within=(1, 1024))
    batch_size: Ints = axis(16, 32, within=(2, 65_536))
    pool: Ints = axis(1, within=(1, 4))
