"""A policy that learns from rewards alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learned_optim.tasks import nets
from learned_optim.tasks.base import Batch, Params, Split
from learned_optim.tasks.images import ImageTask

_SMALLEST = 1e-10


@dataclass(frozen=True)
class Bandit(ImageTask):
    """The share of images whose label a policy does not guess; it is told right or wrong, no more.

    The gradient is REINFORCE's with the minibatch's mean for a baseline: Williams, "Simple
    statistical gradient-following algorithms for connectionist reinforcement learning", 1992,
    section 4. The value is the mean cost itself.

    Parameters `layer<i>.weight`, `layer<i>.bias`; minibatch as `ImageTask`'s and `gumbel`
    `(batch_size, classes)`, by which actions are drawn.
    """

    dataset: str = "mnist"
    batch_size: int = 128
    pool: int = 2
    width: int = 64

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Two hidden layers of ReLUs."""
        pixels = torch.Size(self.source.shape).numel()
        sizes = (pixels, self.width, self.width, self.classes)
        return nets.mlp_params(generator, sizes), {}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """Images, and the noise of the policy."""
        uniform = torch.rand(self.batch_size, self.classes, generator=generator)
        gumbel = -(-uniform.clamp_min(_SMALLEST).log()).log()
        return super().batch(generator, split) | {"gumbel": gumbel}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean cost, 0 or 1 an image, with the gradient of its expectation."""
        logits = nets.mlp(params, batch["x"].flatten(1), 3, "relu")
        action = (logits.detach() + batch["gumbel"]).argmax(-1)
        chosen = nets.one_hot(action, self.classes, logits.dtype)
        log_policy = (logits.log_softmax(-1) * chosen).sum(-1)
        cost = (action != batch["y"]).to(logits.dtype)
        baseline = cost.mean()
        # One in value; its derivative is that of the log.
        unit = (log_policy - log_policy.detach()).exp()
        return ((cost - baseline) * unit).mean() + baseline
