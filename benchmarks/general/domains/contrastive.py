"""Representations without labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import nets
from learned_optim.tasks.base import Batch, Params, Split
from learned_optim.tasks.images import ImageTask


@dataclass(frozen=True)
class Contrastive(ImageTask):
    """Which of the other views in the minibatch is of the same image? Cross entropy in nats.

    Chen et al., "A simple framework for contrastive learning of visual representations", 2020,
    equation 1. Paper / ours: ResNet-50, crops and colours / two convolutions, flips, brightness,
    contrast and noise.

    Parameters `conv<i>.weight`, `conv<i>.bias`, `project<i>.weight`, `project<i>.bias`; minibatch
    `first` and `second`, `(batch_size, C, H, W)`.
    """

    dataset: str = "cifar10"
    batch_size: int = 48
    pool: int = 2
    width: int = 16
    code: int = 32
    temperature: float = 0.2

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """A projection of two layers on the mean over the places."""
        width = self.width
        params = nets.conv_params(generator, "conv0", self.source.shape[0], width)
        params |= nets.conv_params(generator, "conv1", width, 2 * width)
        sizes = (2 * width, 2 * width, self.code)
        return params | nets.mlp_params(generator, sizes, prefix="project"), {}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """Two views of each image."""
        x = nets.centred(super().batch(generator, split)["x"])
        return {"first": _view(x, generator), "second": _view(x, generator)}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean over all `2 * batch_size` views."""
        x = torch.cat((batch["first"], batch["second"]))
        for name in ("conv0", "conv1"):
            x = functional.relu(nets.conv(params, name, x, stride=2))
        code = nets.mlp(params, x.mean((-2, -1)), 2, "relu", prefix="project")
        code = functional.normalize(code, dim=-1)
        alike = code @ code.mT / self.temperature
        itself = torch.eye(len(alike), dtype=torch.bool, device=alike.device)
        partner = torch.arange(len(alike), device=alike.device).roll(self.batch_size)
        return functional.cross_entropy(alike.masked_fill(itself, -1e9), partner)


def _view(x: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(3, len(x), 1, 1, 1, generator=generator)
    flipped = torch.where(drawn[0] < 0.5, x, x.flip(-1))
    noise = nets.normal(generator, x.shape, 0.1)
    return flipped * (0.5 + drawn[1]) + (drawn[2] - 0.5) + noise
