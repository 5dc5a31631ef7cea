"""Vision transformers: attention between patches of small images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import attention, nets
from learned_optim.tasks.axes import AxesFamily, Ints, Strings, axis, choices
from learned_optim.tasks.base import Batch, Params
from learned_optim.tasks.images import ImageTask
from learned_optim.tasks.sources import IMAGES, ImageSource


@dataclass(frozen=True)
class ViTTask(ImageTask):
    """Patches, a dense embedding, learned positions, `depth` blocks, the mean, a dense layer.

    Dosovitskiy et al., "An image is worth 16x16 words", 2021, section 3.1. Paper / ours: a class
    token / the mean over patches. Parameters `embed.weight` `(width, C patch^2)`, `embed.bias`,
    `position` `(patches, width)`, `block<i>...` (see `attention`), `norm.weight|bias`,
    `head.weight|bias`; minibatch `x` `(batch_size, C, H, W)` in [0, 1], centred in the loss, and
    `y` `(batch_size,)`.
    """

    patch: int
    depth: int
    width: int
    heads: int

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Embedding and head "lecun"; positions N(0, 0.02^2); biases zero."""
        channels, height, width = self.source.shape
        patches = (height // self.patch) * (width // self.patch)
        params = nets.dense_params(
            generator, "embed", channels * self.patch**2, self.width, "lecun"
        )
        params["position"] = nets.normal(generator, (patches, self.width), 0.02)
        for i in range(self.depth):
            params |= attention.block_params(generator, f"block{i}", self.width, self.depth)
        params |= nets.norm_params("norm", self.width, generator.device)
        return params | nets.dense_params(generator, "head", self.width, self.classes, "lecun"), {}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean cross entropy."""
        x = nets.centred(batch["x"]).to(params["position"].dtype)
        count, channels, height, width = x.shape
        rows, columns, side = height // self.patch, width // self.patch, self.patch
        x = x.reshape(count, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
        x = nets.dense(params, "embed", x.reshape(count, rows * columns, channels * side**2))
        x = x + params["position"]
        for i in range(self.depth):
            x = attention.block(params, f"block{i}", x, self.heads, causal=False)
        pooled = nets.layer_norm(params, "norm", x).mean(1)
        return functional.cross_entropy(nets.dense(params, "head", pooled), batch["y"])


@dataclass(frozen=True)
class ViT(AxesFamily):
    """Vision transformers.

    Args (all axes, see `axes`):
        dataset: "digits", "mnist" or "cifar10".
        patch: pixels of a side of a patch; it must divide the side of every image.
        depth: number of blocks.
        width: of the residual stream; every value must be a multiple of every `heads`.
        heads: of the attention.
        batch_size: images in a minibatch.
        pool: average pooling of the images.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "vit"
    task = ViTTask

    dataset: Strings = axis("digits", among=IMAGES)
    patch: Ints = axis(2, 4, within=(1, 32))
    depth: Ints = axis(1, 2, within=(1, 64))
    width: Ints = axis(16, 32, within=(1, 4096))
    heads: Ints = axis(2, 4, within=(1, 64))
    batch_size: Ints = axis(16, 32, within=(1, 65_536))
    pool: Ints = axis(1, within=(1, 4))

    def __post_init__(self) -> None:
        super().__post_init__()
        attention.check_heads(self)
        for dataset in choices(self, "dataset"):
            for pool in choices(self, "pool"):
                side = ImageSource(dataset, pool).shape[1]
                for patch in choices(self, "patch"):
                    if side % patch:
                        raise ValueError(
                            f"patch must divide the side of every image: {patch} does not divide "
                            f"{side}, that of {dataset!r} with pool {pool}"
                        )
