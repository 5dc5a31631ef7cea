"""Character sequences for the language models: a Markov chain, or the works of Shakespeare.

- "generated": a Markov chain of order one or two with random transitions, made from a seed; no
  file.
- "tinyshakespeare": 1,115,394 characters over an alphabet of 65, from Karpathy's char-rnn. Read
  from `text/tinyshakespeare.txt` in the folder named by the environment variable
  `LEARNED_OPTIM_DATA`; it is no Hub data set of a stable format, so nothing is downloaded. The
  first nine tenths are the training split, the rest the test split.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from learned_optim.tasks import nets
from learned_optim.tasks.base import Batch, Split
from learned_optim.tasks.datasets import DATA_VARIABLE, DataUnavailable

TEXTS = ("generated", "tinyshakespeare")

_FILE = "text/tinyshakespeare.txt"
_ALPHABET = 65
_TRAIN_FRACTION = 0.9
_CHAINS, _CHAIN_LENGTH = 256, 128
_SHARPNESS = 3.0  # of the chain: about two likely successors


class Corpus(NamedTuple):
    """Where windows of characters come from.

    Attributes:
        text: one of `TEXTS`.
        alphabet: number of characters; of a chain only, Shakespeare's is 65.
        order: of the Markov chain.
        seed: of the Markov chain.
    """

    text: str
    alphabet: int = _ALPHABET
    order: int = 1
    seed: int = 0

    @property
    def size(self) -> int:
        """Number of different characters."""
        return self.alphabet if self.text == "generated" else _ALPHABET

    def batch(self, generator: torch.Generator, size: int, length: int, split: Split) -> Batch:
        """`tokens` `(size, length + 1)` int64: each window is input and, shifted by one, target.

        Raises:
            DataUnavailable: if there is no such file.
        """
        return windows(self.tokens(split), generator, size, length)

    def tokens(self, split: Split) -> Tensor:
        """The whole split, `(N,)` int64."""
        if self.text == "generated":
            tokens = _chain(self.alphabet, self.order, self.seed)
        else:
            tokens = _shakespeare(os.environ.get(DATA_VARIABLE, ""))
        cut = int(_TRAIN_FRACTION * len(tokens))
        return tokens[:cut] if split == "train" else tokens[cut:]


def windows(tokens: Tensor, generator: torch.Generator, size: int, length: int) -> Batch:
    """See `Corpus.batch`: windows at random places of `tokens` `(N,)`."""
    tokens = tokens.to(generator.device)
    starts = nets.integers(generator, len(tokens) - length, size)
    offsets = torch.arange(length + 1, device=generator.device)
    return {"tokens": tokens[starts[:, None] + offsets]}


def draw_corpus(text: str, alphabet: int, order: int, generator: torch.Generator) -> Corpus:
    """A corpus with a chain of its own."""
    return Corpus(text, alphabet, order, int(nets.integers(generator, 2**31, 1)))


@functools.lru_cache(maxsize=256)
def _chain(alphabet: int, order: int, seed: int) -> Tensor:
    """`_CHAINS` realisations of the same chain, one after the other."""
    generator = torch.Generator().manual_seed(seed)
    logits = nets.normal(generator, (alphabet**order, alphabet), _SHARPNESS)
    probabilities = logits.softmax(-1)
    context = nets.integers(generator, alphabet**order, _CHAINS)
    steps = []
    for _ in range(_CHAIN_LENGTH):
        token = torch.multinomial(probabilities[context], 1, generator=generator).squeeze(1)
        context = (context * alphabet + token) % alphabet**order
        steps.append(token)
    return torch.stack(steps, dim=1).flatten()


@functools.lru_cache(maxsize=2)
def _shakespeare(root: str) -> Tensor:
    path = Path(root) / _FILE
    if not root or not path.is_file():
        raise DataUnavailable(
            f"{_FILE} is not in the folder that {DATA_VARIABLE} names ({root!r}). Put Karpathy's "
            "tinyshakespeare there and set the variable, or use the text 'generated'."
        )
    content = path.read_bytes()
    alphabet = sorted(set(content))
    if len(alphabet) != _ALPHABET:
        raise DataUnavailable(
            f"{path} has {len(alphabet)} different characters, not {_ALPHABET}: it is not "
            "tinyshakespeare. Download it again."
        )
    index = torch.zeros(256, dtype=torch.long)
    index[torch.tensor(alphabet)] = torch.arange(_ALPHABET)
    return index[torch.frombuffer(bytearray(content), dtype=torch.uint8).long()]
