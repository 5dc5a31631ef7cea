"""What the tasks on images share: where their minibatches come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from learned_optim.tasks.base import Batch, Split, Task
from learned_optim.tasks.sources import ImageSource


@dataclass(frozen=True)
class ImageTask(Task):
    """An optimizee whose minibatches are images of a data set, average-pooled by `pool`."""

    dataset: str
    batch_size: int
    pool: int

    @property
    def source(self) -> ImageSource:
        """Of the images."""
        return ImageSource(self.dataset, self.pool)

    @property
    def classes(self) -> int:
        """Number of labels."""
        return self.source.classes

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """`batch_size` images drawn with replacement."""
        return self.source.batch(generator, self.batch_size, split)
