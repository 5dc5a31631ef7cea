"""A sparse mixture of experts: most gradients of an expert are zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import nets
from learned_optim.tasks.base import Batch, Params
from learned_optim.tasks.images import ImageTask


@dataclass(frozen=True)
class Experts(ImageTask):
    """Classification by experts of which a gate sends each image to one, and a loss that evens out.

    Fedus, Zoph and Shazeer, "Switch transformers", 2022, section 2.1 and equation 4; the
    loss has the balancing term, times 0.01, in it. Paper / ours: no limit on an expert's share.

    Parameters `input...`, `gate...`, `expert<i>.layer<k>...`, `head...`; minibatch
    as `ImageTask`'s.
    """

    dataset: str = "cifar10"
    batch_size: int = 64
    pool: int = 4
    width: int = 64
    experts: int = 6
    balance: float = 0.01

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """He; the gate at a tenth, as the paper advises."""
        width = self.width
        pixels = torch.Size(self.source.shape).numel()
        params = nets.dense_params(generator, "input", pixels, width)
        params |= nets.dense_params(generator, "gate", width, self.experts, gain=0.1)
        for i in range(self.experts):
            params |= nets.mlp_params(generator, [width] * 3, prefix=f"expert{i}.layer")
        return params | nets.dense_params(generator, "head", width, self.classes), {}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Cross entropy, and the balancing term."""
        x = functional.relu(nets.dense(params, "input", nets.centred(batch["x"]).flatten(1)))
        likely = nets.dense(params, "gate", x).softmax(-1)
        sent = nets.one_hot(likely.argmax(-1), self.experts, x.dtype)
        answers = [
            nets.mlp(params, x, 2, "relu", prefix=f"expert{i}.layer") for i in range(self.experts)
        ]
        weights = (likely * sent).unbind(-1)
        x = x + sum(w[:, None] * each for w, each in zip(weights, answers, strict=True))
        loss = nets.classification_loss(nets.dense(params, "head", x), batch["y"])
        uneven = self.experts * (sent.mean(0) * likely.mean(0)).sum()
        return loss + self.balance * uneven
