"""Recurrent language models of characters."""

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
from learned_optim.tasks.text import TEXTS, Corpus, draw_corpus


@dataclass(frozen=True)
class RNNLanguageModelTask(Task):
    """Predict each next character from those before it in a window of `length`.

    Parameters `embedding` `(alphabet, width)`, `input.weight` `(gates * width, width)`,
    `input.bias`, `recurrent.weight` `(gates * width, width)`, `head.weight` `(alphabet, width)`,
    `head.bias`; minibatch `tokens` `(batch_size, length + 1)` int64.
    """

    corpus: Corpus
    cell: str
    width: int
    length: int
    batch_size: int

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """As torch.nn does, but for the forget gate.

        Embeddings N(0, 1), matrices U(-1/sqrt(width), 1/sqrt(width)), biases zero, except the
        forget gate's, which is 1: Jozefowicz et al., "An empirical exploration of recurrent
        network architectures", 2015, section 2.2.
        """
        width, size, rows = self.width, self.corpus.size, GATES[self.cell] * self.width
        params: Params = {"embedding": nets.normal(generator, (size, width))}
        params |= nets.dense_params(generator, "input", width, rows, "torch")
        params["recurrent.weight"] = nets.weight(generator, (rows, width), "torch")
        params |= nets.dense_params(generator, "head", width, size, "torch")
        if self.cell == "lstm":
            params["input.bias"][width : 2 * width] = 1.0
        return params, {}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """`batch_size` windows at random places."""
        return self.corpus.batch(generator, self.batch_size, self.length, split)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean cross entropy in nats a character; every window starts from a zero state."""
        tokens = batch["tokens"]
        embedded = nets.embed(params["embedding"], tokens[:, :-1])
        inputs = nets.dense(params, "input", embedded)
        hidden = inputs.new_zeros(self.batch_size, self.width)
        memory, outputs = hidden, []
        for step in inputs.unbind(1):
            recurrent = functional.linear(hidden, params["recurrent.weight"])
            hidden, memory = advance(self.cell, step, recurrent, hidden, memory)
            outputs.append(hidden)
        logits = nets.dense(params, "head", torch.stack(outputs, dim=1))
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@dataclass(frozen=True)
class RNNLanguageModel(AxesFamily):
    """Recurrent language models.

    Args (all axes, see `axes`):
        dataset: "generated", a Markov chain of the task's own, or "tinyshakespeare".
        alphabet: number of characters of a chain.
        order: of the chain.
        cell: one of `CELLS`.
        width: of embedding and hidden state.
        length: characters in a window.
        batch_size: windows in a minibatch.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "rnn_lm"

    dataset: Strings = axis("generated", among=TEXTS)
    alphabet: Ints = axis(8, 16, 32, within=(2, 64))
    order: Ints = axis(1, 2, within=(1, 2))
    cell: Strings = axis("gru", "lstm", "rnn", among=CELLS)
    width: Ints = axis(16, 32, within=(1, 4096))
    length: Ints = axis(8, 16, within=(1, 4096))
    batch_size: Ints = axis(16, 32, within=(1, 65_536))

    def sample(self, generator: torch.Generator) -> RNNLanguageModelTask:
        """Draw the structure and the chain."""
        drawn = self.draw(generator)
        chain = (drawn.pop("dataset"), drawn.pop("alphabet"), drawn.pop("order"))
        return RNNLanguageModelTask(draw_corpus(*chain, generator), **drawn)
