"""Functions that make a model and its loss, as users write them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Made = tuple[nn.Module, Callable[[], Tensor]]


def regression() -> Made:
    model = nn.Linear(8, 1)

    def loss() -> Tensor:
        x = torch.randn(32, 8).to(model.weight.dtype)
        return (model(x) - x.sum(-1, keepdim=True)).square().mean()

    return model, loss


class Attention(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout, "gelu", batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(x)))


def dropout() -> Made:
    """With which the same minibatch does not yet mean the same loss."""
    return attention(0.2)


def attention(dropout: float = 0.0) -> Made:
    model = Attention(dropout)

    def loss() -> Tensor:
        x = torch.randint(10, (4, 6))
        return functional.cross_entropy(model(x).flatten(0, 1), (3 * x % 10).flatten())

    return model, loss


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 6, batch_first=True), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1]).squeeze(-1)


def recurrent() -> Made:
    model = Recurrent()

    def loss() -> Tensor:
        x = torch.randn(4, 5, 2)
        return (model(x) - x[..., 0].sum(1)).square().mean()

    return model, loss


def convolution() -> Made:
    """With running statistics, and a layer that is not trained."""
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)]
    model = nn.Sequential(*layers)
    layers[0].requires_grad_(False)

    def loss() -> Tensor:
        x = torch.randn(8, 1, 6, 6)
        return functional.cross_entropy(model(x), (x.mean((1, 2, 3)) > 0).long())

    return model, loss


def from_an_iterator() -> Made:
    model, batches = nn.Linear(8, 1), iter([torch.zeros(1, 8), torch.ones(1, 8)] * 9)
    return model, lambda: model(next(batches)).sum()


def with_unseeded_data() -> Made:
    x = torch.from_numpy(np.random.default_rng().normal(size=(32, 8))).float()
    model = nn.Linear(8, 1)
    return model, lambda: model(x[torch.randint(32, (8,))]).square().mean()


def in_double() -> Made:
    model = nn.Linear(2, 1).double()
    return model, lambda: model(torch.ones(1, 2).double()).sum()


def of_no_tensor() -> tuple[nn.Module, Callable[[], float]]:
    model = nn.Linear(2, 1)
    return model, lambda: model(torch.ones(1, 2)).item()
