"""Transformer language models of characters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import attention, nets
from learned_optim.tasks.axes import AxesFamily, Ints, Strings, axis
from learned_optim.tasks.base import Batch, Params, Split, Task
from learned_optim.tasks.text import TEXTS, Corpus, draw_corpus


@dataclass(frozen=True)
class TransformerLanguageModelTask(Task):
    """Predict each next character from those before it in a window of `length`.

    `depth` causal pre-norm blocks (see `attention`), a last norm and a dense layer. Parameters
    `embedding` `(alphabet, width)`, `position` `(length, width)`, `block<i>...`,
    `norm.weight|bias`, `head.weight` `(alphabet, width)`, `head.bias`; minibatch `tokens`
    `(batch_size, length + 1)` int64.
    """

    corpus: Corpus
    depth: int
    width: int
    heads: int
    length: int
    batch_size: int

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """N(0, 0.02^2) as `attention.block_params`; biases zero; the head is not tied."""
        size, width = self.corpus.size, self.width
        params: Params = {
            "embedding": nets.normal(generator, (size, width), 0.02),
            "position": nets.normal(generator, (self.length, width), 0.02),
        }
        for i in range(self.depth):
            params |= attention.block_params(generator, f"block{i}", width, self.depth)
        params |= nets.norm_params("norm", width, generator.device)
        params["head.weight"] = nets.normal(generator, (size, width), 0.02)
        params["head.bias"] = torch.zeros(size, device=generator.device)
        return params, {}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """`batch_size` windows at random places."""
        return self.corpus.batch(generator, self.batch_size, self.length, split)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean cross entropy in nats a character."""
        tokens = batch["tokens"]
        x = nets.embed(params["embedding"], tokens[:, :-1]) + params["position"]
        for i in range(self.depth):
            x = attention.block(params, f"block{i}", x, self.heads, causal=True)
        logits = nets.dense(params, "head", nets.layer_norm(params, "norm", x))
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@dataclass(frozen=True)
class TransformerLanguageModel(AxesFamily):
    """Transformer language models.

    Args (all axes, see `axes`):
        dataset: "generated", a Markov chain of the task's own, or "tinyshakespeare".
        alphabet: number of characters of a chain.
        order: of the chain.
        depth: number of blocks.
        width: of the residual stream; every value must be a multiple of every `heads`.
        heads: of the attention.
        length: characters in a window.
        batch_size: windows in a minibatch.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "transformer_lm"

    dataset: Strings = axis("generated", among=TEXTS)
    alphabet: Ints = axis(8, 16, 32, within=(2, 64))
    order: Ints = axis(1, 2, within=(1, 2))
    depth: Ints = axis(1, 2, within=(1, 64))
    width: Ints = axis(16, 32, within=(1, 4096))
    heads: Ints = axis(2, 4, within=(1, 64))
    length: Ints = axis(8, 16, within=(1, 4096))
    batch_size: Ints = axis(8, 16, within=(1, 65_536))

    def __post_init__(self) -> None:
        super().__post_init__()
        attention.check_heads(self)

    def sample(self, generator: torch.Generator) -> TransformerLanguageModelTask:
        """Draw the structure and the chain."""
        drawn = self.draw(generator)
        chain = (drawn.pop("dataset"), drawn.pop("alphabet"), drawn.pop("order"))
        return TransformerLanguageModelTask(draw_corpus(*chain, generator), **drawn)
