"""Vectors of words: large tables of which a minibatch touches few rows."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import nets
from learned_optim.tasks.base import Batch, Params, Split, Task
from learned_optim.tasks.datasets import DATA_VARIABLE
from learned_optim.tasks.text import Corpus

_LETTERS, _FIRST_LETTER = 26, 13  # capital and small ones end Shakespeare's alphabet of 65
_FLATTER = 0.75  # power of a word's frequency by which wrong words are drawn
_WINDOW = 4  # words to either side


@dataclass(frozen=True)
class WordVectors(Task):
    """Is this word of Shakespeare's near that one? Logistic loss of one that is, some that are not.

    Mikolov et al., "Distributed representations of words and phrases and their compositionality",
    2013, equation 4. Paper / ours: rare words, 300 numbers a word / the `words` most frequent ones,
    `width`.

    Parameters `embedding` and `context`, `(words, width)`; minibatch `word` `(batch_size,)` int64,
    `others` `(batch_size, 1 + wrong)` int64, the first one is right.
    """

    words: int = 400
    width: int = 32
    wrong: int = 4
    batch_size: int = 48

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """As the authors' code: uniform, and zero."""
        drawn = nets.uniform(generator, (self.words, self.width), 0.5 / self.width)
        return {"embedding": drawn, "context": torch.zeros(self.words, self.width)}, {}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """Pairs of the text, and words by their frequency to the power 0.75."""
        text = spoken(self.words, split, os.environ.get(DATA_VARIABLE, ""))
        place = nets.integers(generator, len(text) - 2 * _WINDOW, self.batch_size) + _WINDOW
        away = nets.integers(generator, _WINDOW, self.batch_size) + 1
        side = 2 * nets.integers(generator, 2, self.batch_size) - 1
        often = text.bincount(minlength=self.words).float() ** _FLATTER
        wrong = torch.multinomial(
            often, self.batch_size * self.wrong, replacement=True, generator=generator
        )
        right = text[place + side * away]
        others = torch.cat((right[:, None], wrong.view(self.batch_size, self.wrong)), 1)
        return {"word": text[place], "others": others}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Summed over a pair's words, averaged over pairs."""
        word = nets.embed(params["embedding"], batch["word"])
        others = nets.embed(params["context"], batch["others"])
        scores = (others @ word[..., None]).squeeze(-1)
        right = torch.zeros_like(scores)
        right[:, 0] = 1
        surprise = functional.binary_cross_entropy_with_logits(scores, right, reduction="none")
        return surprise.sum(-1).mean()


@functools.lru_cache(maxsize=4)
def spoken(words: int, split: Split, root: str) -> Tensor:
    """The text as numbers of its `words` most frequent words, all others left out, `(N,)` int64.

    Args:
        words: numbered by their frequency in the training split.
        split: of the text.
        root: where the text is, for the cache's sake.
    """
    rank = {word: index for index, word in enumerate(_most_frequent(words, root))}
    return torch.tensor([rank[word] for word in _words(split) if word in rank])


def _most_frequent(words: int, root: str) -> list[str]:
    counts: dict[str, int] = {}
    for word in _words("train"):
        counts[word] = counts.get(word, 0) + 1
    return sorted(counts, key=lambda word: (-counts[word], word))[:words]


def _words(split: Split) -> list[str]:
    letters = (Corpus("tinyshakespeare").tokens(split) - _FIRST_LETTER).tolist()
    text = "".join(chr(97 + c % _LETTERS) if c >= 0 else " " for c in letters)
    return text.split()
