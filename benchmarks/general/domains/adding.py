"""The adding problem: what a recurrent network must remember over many steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import nets
from learned_optim.tasks.base import Batch, Params, Split, Task
from learned_optim.tasks.recurrent import advance


@dataclass(frozen=True)
class Adding(Task):
    """Squared error of the sum of two marked numbers in a sequence, read by a GRU.

    Hochreiter and Schmidhuber, "Long short-term memory", 1997, experiment 4. Paper / ours: lengths
    from 100 on, numbers in [-1, 1] / `length`, numbers in [0, 1], of whose sum the variance is 1/6.

    Parameters `input.weight` `(3 * width, 2)`, `input.bias`, `recurrent.weight`
    `(3 * width, width)`, `head.weight`, `head.bias`; minibatch `x` `(batch_size, length, 2)`,
    numbers and marks, and `y` `(batch_size,)`.
    """

    length: int = 30
    width: int = 32
    batch_size: int = 32

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """As torch.nn.GRU's, but for biases, which are zero."""
        params = nets.dense_params(generator, "input", 2, 3 * self.width, "torch")
        params["recurrent.weight"] = nets.weight(generator, (3 * self.width, self.width), "torch")
        return params | nets.dense_params(generator, "head", self.width, 1, "torch"), {}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """One mark in either half of a sequence."""
        numbers = torch.rand(self.batch_size, self.length, generator=generator)
        half = self.length // 2
        early = nets.integers(generator, half, self.batch_size)
        late = self.length - half + nets.integers(generator, half, self.batch_size)
        marks = nets.one_hot(torch.stack((early, late)), self.length, numbers.dtype).sum(0)
        return {"x": torch.stack((numbers, marks), -1), "y": (numbers * marks).sum(-1)}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean over the sequences."""
        x = batch["x"]
        hidden = x.new_zeros(self.batch_size, self.width)
        for step in nets.dense(params, "input", x).unbind(1):
            recurrent = functional.linear(hidden, params["recurrent.weight"])
            hidden, _ = advance("gru", step, recurrent, hidden, hidden)
        return (nets.dense(params, "head", hidden).squeeze(-1) - batch["y"]).square().mean()
