"""Where the classification tasks get labelled examples from: image data sets, or clusters.

A source has three parts: `constants`, drawn once a run; `batch`, drawn at every step; and `inputs`,
the examples as a function of both, to be called in the loss.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import datasets, nets
from learned_optim.tasks.base import Batch, Split

IMAGES = ("digits", "mnist", "cifar10")
_SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


class Source(ABC):
    """Labelled examples; minibatches hold `y` `(B,)` int64."""

    classes: ClassVar[int] = 10

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one example."""

    def constants(self, generator: torch.Generator) -> Batch:
        """What stays the same over a run."""
        return {}

    @abstractmethod
    def batch(self, generator: torch.Generator, size: int, split: Split) -> Batch:
        """`size` examples, drawn with replacement."""

    @abstractmethod
    def inputs(self, batch: Batch) -> Tensor:
        """The examples of a minibatch, `(B, *shape)`."""


@dataclass(frozen=True)
class ImageSource(Source):
    """Images with pixels in [0, 1], average-pooled by `pool` in both directions."""

    dataset: str
    pool: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = _SHAPES[self.dataset]
        return channels, height // self.pool, width // self.pool

    def batch(self, generator: torch.Generator, size: int, split: Split) -> Batch:
        """`x` `(size, C, H, W)` and `y`."""
        images, labels = _pooled(self.dataset, self.pool, split, str(generator.device))
        index = nets.integers(generator, len(labels), size)
        # Rows of bytes, because index_select on four dimensions takes several times as long.
        x = datasets.scaled(images.flatten(1).index_select(0, index)).view(size, *self.shape)
        return {"x": x, "y": labels.index_select(0, index)}

    def inputs(self, batch: Batch) -> Tensor:
        """The pixels."""
        return batch["x"]


@dataclass(frozen=True)
class ClusterSource(Source):
    """Gaussian clusters, three a class, so that the classes are not convex.

    `x = separation * centre[cluster] + z`, `z` and the centres N(0, 1), `y = cluster mod classes`.
    """

    features: int
    separation: float = 1.0

    @property
    def shape(self) -> tuple[int]:
        """Number of features."""
        return (self.features,)

    def constants(self, generator: torch.Generator) -> Batch:
        """`centres` `(3 * classes, features)`."""
        drawn = nets.normal(generator, (3 * self.classes, self.features), self.separation)
        return {"centres": drawn}

    def batch(self, generator: torch.Generator, size: int, split: Split) -> Batch:
        """`z` `(size, features)`, `cluster` and `y` `(size,)`; both splits are fresh draws."""
        cluster = nets.integers(generator, 3 * self.classes, size)
        z = nets.normal(generator, (size, self.features))
        return {"z": z, "cluster": cluster, "y": cluster % self.classes}

    def inputs(self, batch: Batch) -> Tensor:
        """`(B, features)`."""
        return batch["centres"][batch["cluster"]] + batch["z"]


def source(dataset: str, pool: int = 1, features: int = 16) -> Source:
    """The source that an axis `dataset` names; `pool` is of images, `features` of clusters."""
    return ClusterSource(features) if dataset == "clusters" else ImageSource(dataset, pool)


@functools.lru_cache(maxsize=16)
def _pooled(dataset: str, pool: int, split: Split, device: str) -> datasets.Images:
    images, labels = datasets.load(dataset, split, device)
    if pool > 1:
        # In float and rounded: avg_pool2d knows no bytes.
        images = functional.avg_pool2d(images.float(), pool).round_().to(torch.uint8)
    return datasets.Images(images, labels)
