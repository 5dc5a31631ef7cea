"""Variational autoencoders of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Ints, Strings, axis
from learned_optim.tasks.base import Batch, Params, Split
from learned_optim.tasks.images import ImageTask
from learned_optim.tasks.sources import IMAGES

_SMALLEST_STD = 1e-3


@dataclass(frozen=True)
class VAETask(ImageTask):
    """The negative evidence lower bound in nats an image: `E -log p(x|z) + KL(q(z|x) || N(0, 1))`.

    Kingma and Welling, "Auto-encoding variational Bayes", 2014, section 3 and appendix C.1.
    Paper / ours: binary pixels / grey ones taken as probabilities; `sigma = exp(s)` / `softplus(s)`
    whose square does not overflow when s is large; noise drawn in the loss / part of the minibatch.

    Parameters `encoder<i>...` and `decoder<i>...`, `.weight` `(out, in)` and `.bias`; minibatch `x`
    as `ImageSource` draws it, `noise` `(batch_size, latent)` N(0, 1).
    """

    depth: int
    width: int
    latent: int
    activation: str
    scheme: str

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Weights by `nets.weight`, biases zero; there are no constants."""
        pixels = torch.Size(self.source.shape).numel()
        hidden = [self.width] * self.depth
        down, up = (pixels, *hidden, 2 * self.latent), (self.latent, *hidden, pixels)
        encoder = nets.mlp_params(generator, down, self.scheme, prefix="encoder")
        return encoder | nets.mlp_params(generator, up, self.scheme, prefix="decoder"), {}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """`batch_size` images drawn with replacement, and the noise of one sample for each."""
        batch = super().batch(generator, split)
        return batch | {"noise": nets.normal(generator, (self.batch_size, self.latent))}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Summed over pixels and latents, averaged over images."""
        x = batch["x"].flatten(1).to(params["encoder0.weight"].dtype)
        layers = self.depth + 1
        code = nets.mlp(params, x, layers, self.activation, prefix="encoder")
        mean, std = code[:, : self.latent], functional.softplus(code[:, self.latent :])
        std = std + _SMALLEST_STD
        sample = mean + std * batch["noise"].to(x.dtype)
        logits = nets.mlp(params, sample, layers, self.activation, prefix="decoder")
        surprise = functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
        divergence = 0.5 * (mean.square() + std.square() - 1.0) - std.log()
        return surprise.sum(-1).mean() + divergence.sum(-1).mean()


@dataclass(frozen=True)
class VAE(AxesFamily):
    """MLP variational autoencoders.

    Args (all axes, see `axes`):
        dataset: "digits", "mnist" or "cifar10".
        depth: hidden layers of the encoder, and of the decoder.
        width: units in each.
        latent: dimension of the code.
        activation: one of `nets.ACTIVATIONS`.
        scheme: initialisation, one of `nets.SCHEMES`; biases start at zero.
        batch_size: images in a minibatch.
        pool: average pooling of the images.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "vae"
    task = VAETask

    dataset: Strings = axis("digits", among=IMAGES)
    depth: Ints = axis(1, 2, within=(0, 32))
    width: Ints = axis(32, 64, within=(1, 16_384))
    latent: Ints = axis(2, 8, within=(1, 4096))
    activation: Strings = axis("relu", "tanh", "gelu", among=nets.ACTIVATIONS)
    scheme: Strings = axis("glorot", "torch", among=nets.SCHEMES)
    batch_size: Ints = axis(16, 32, 64, within=(1, 65_536))
    pool: Ints = axis(1, within=(1, 4))
