"""A denoising diffusion model of images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learned_optim.tasks import nets
from learned_optim.tasks.base import Batch, Params, Split
from learned_optim.tasks.images import ImageTask

_TIMES, _FIRST, _LAST = 1000, 1e-4, 0.02  # steps of the noise, its least and largest variance
_WAVES = 16


@dataclass(frozen=True)
class Diffusion(ImageTask):
    """Squared error of the noise in a noisy image, guessed from the image and its noise's level.

    Ho, Jain and Abbeel, "Denoising diffusion probabilistic models", 2020, equation 14 and
    section 4. Paper / ours: a U-Net / a residual MLP with layer normalisation.

    Parameters `input...`, `time...`, `block<i>.norm...`, `block<i>.expand...`,
    `block<i>.contract...`, `output...`; minibatch `x` `(batch_size, pixels)` noisy, `noise`
    likewise, `time` `(batch_size, 2 * _WAVES)`.
    """

    dataset: str = "mnist"
    batch_size: int = 64
    pool: int = 2
    width: int = 96
    depth: int = 2

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """He; the last layer begins at a tenth, so that the first guess is near none."""
        pixels, width = torch.Size(self.source.shape).numel(), self.width
        params = nets.dense_params(generator, "input", pixels, width)
        params |= nets.dense_params(generator, "time", 2 * _WAVES, width)
        for i in range(self.depth):
            params |= nets.norm_params(f"block{i}.norm", width)
            params |= nets.dense_params(generator, f"block{i}.expand", width, 2 * width)
            params |= nets.dense_params(generator, f"block{i}.contract", 2 * width, width)
        return params | nets.dense_params(generator, "output", width, pixels, gain=0.1), {}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """Images, each with noise of a level of its own."""
        x = nets.centred(super().batch(generator, split)["x"]).flatten(1)
        when = nets.integers(generator, _TIMES, self.batch_size)
        kept = signal()[when, None]
        noise = nets.normal(generator, x.shape)
        speeds = torch.exp(-math.log(1e4) * torch.arange(_WAVES) / _WAVES)
        angles = when[:, None] * speeds
        time = torch.cat((angles.sin(), angles.cos()), -1)
        return {"x": kept.sqrt() * x + (1 - kept).sqrt() * noise, "noise": noise, "time": time}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean over pixels and images."""
        x = nets.dense(params, "input", batch["x"]) + nets.dense(params, "time", batch["time"])
        for i in range(self.depth):
            inside = nets.layer_norm(params, f"block{i}.norm", x)
            inside = torch.nn.functional.silu(nets.dense(params, f"block{i}.expand", inside))
            x = x + nets.dense(params, f"block{i}.contract", inside)
        return (nets.dense(params, "output", x) - batch["noise"]).square().mean()


def signal() -> Tensor:
    """Share of the image in the variance at each time, `(_TIMES,)`: alpha bar of the paper."""
    return (1 - torch.linspace(_FIRST, _LAST, _TIMES)).cumprod(0)
