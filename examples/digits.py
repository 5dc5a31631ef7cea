"""The data of the examples: scikit-learn's 1,797 handwritten digits, which come inside it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


class Digits(NamedTuple):
    """Images `(N, 64)` in [0, 1] and labels `(N,)`; every fifth is for the test."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load() -> Digits:
    """Read the digits and cut them in two."""
    pixels, classes = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(classes)
    test = torch.arange(len(labels)) % 5 == 0
    return Digits(images[~test], labels[~test], images[test], labels[test])


def minibatches(data: Digits, count: int, size: int = 64, seed: int = 0) -> Iterator[list[Tensor]]:
    """`count` random minibatches of the training set."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        chosen = torch.randint(len(data.train_y), (size,), generator=generator)
        yield [data.train_x[chosen], data.train_y[chosen]]


def network() -> nn.Sequential:
    """A small network for the digits; seed torch before the call."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Fraction of the test set that is classified right."""
    model.eval()
    right = model(data.test_x).argmax(-1) == data.test_y
    model.train()
    return right.float().mean().item()


def steps(description: str | None, default: int) -> int:
    """The value of `--steps`, the only argument that most examples take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=default, help=f"updates ({default})")
    return parser.parse_args().steps
