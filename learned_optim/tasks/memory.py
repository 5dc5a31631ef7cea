"""Recurrent networks that read a sequence and must say one number about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Ints, Strings, axis
from learned_optim.tasks.base import Batch, Params, Split, Task
from learned_optim.tasks.recurrent import CELLS, GATES, advance

QUESTIONS = ("first", "largest", "count")
MARKED = 0.15  # share of the numbers that have a mark


@dataclass(frozen=True)
class MemoryTask(Task):
    """Squared error of what was asked of a sequence of marked numbers, read one by one.

    `question`: the "first" number, the "largest", or the "count" of the marks over its mean. Fresh
    sequences at every step and no noise in the answers, so that the noise of a minibatch goes with
    the loss.

    Parameters `input.weight` `(gates * width, 2)`, `input.bias`, `recurrent.weight`
    `(gates * width, width)`, `head.weight` `(1, width)`, `head.bias`; minibatch `x`
    `(batch_size, length, 2)`, numbers in [0, 1] and marks, and `y` `(batch_size,)`.
    """

    question: str
    cell: str
    length: int
    width: int
    batch_size: int

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """As torch.nn's, but for biases, which are zero, an LSTM's forget gate's 1."""
        rows = GATES[self.cell] * self.width
        params = nets.dense_params(generator, "input", 2, rows, "torch")
        params["recurrent.weight"] = nets.weight(generator, (rows, self.width), "torch")
        if self.cell == "lstm":
            params["input.bias"][self.width : 2 * self.width] = 1.0
        return params | nets.dense_params(generator, "head", self.width, 1, "torch"), {}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """Uniform numbers; a mark on each with a probability of `MARKED`."""
        size, device = (self.batch_size, self.length), generator.device
        numbers = torch.rand(size, generator=generator, device=device)
        marks = (torch.rand(size, generator=generator, device=device) < MARKED).to(numbers.dtype)
        answers = {
            "first": numbers[:, 0],
            "largest": numbers.amax(1),
            "count": marks.sum(1) / (MARKED * self.length),
        }
        return {"x": torch.stack((numbers, marks), -1), "y": answers[self.question]}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean over the sequences."""
        inputs = nets.dense(params, "input", batch["x"])
        hidden = memory = inputs.new_zeros(self.batch_size, self.width)
        for step in inputs.unbind(1):
            recurrent = functional.linear(hidden, params["recurrent.weight"])
            hidden, memory = advance(self.cell, step, recurrent, hidden, memory)
        return (nets.dense(params, "head", hidden).squeeze(-1) - batch["y"]).square().mean()


@dataclass(frozen=True)
class Memory(AxesFamily):
    """Questions about sequences.

    Args (all axes, see `axes`):
        question: one of `QUESTIONS`.
        cell: one of `CELLS`.
        length: numbers in a sequence.
        width: of the hidden state.
        batch_size: sequences in a minibatch.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "memory"
    task = MemoryTask

    question: Strings = axis(*QUESTIONS, among=QUESTIONS)
    cell: Strings = axis("gru", "lstm", among=CELLS)
    length: Ints = axis(12, 20, within=(1, 4096))
    width: Ints = axis(16, 32, within=(1, 4096))
    batch_size: Ints = axis(32, within=(1, 65_536))
