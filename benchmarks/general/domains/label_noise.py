"""Labels of which many are wrong, and units that are left out by chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import nets
from learned_optim.tasks.base import Batch, Params, Split
from learned_optim.tasks.images import ImageTask


@dataclass(frozen=True)
class LabelNoise(ImageTask):
    """Cross entropy with labels of which a share is drawn at random, half of the units dropped.

    Zhang et al., "Understanding deep learning requires rethinking generalization", 2017,
    section 2.2 (there the wrong labels stay the same, here they are drawn at every step);
    Srivastava et al., "Dropout", 2014, section 4. Test labels are right, and nothing is dropped.

    Parameters `layer<i>...`; minibatch as `ImageTask`'s, and `keep<i>` `(batch_size, width)`,
    factors of the hidden units.
    """

    dataset: str = "mnist"
    batch_size: int = 64
    pool: int = 2
    width: int = 128
    wrong: float = 0.4
    dropped: float = 0.5

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Two hidden layers of ReLUs."""
        pixels = torch.Size(self.source.shape).numel()
        return nets.mlp_params(generator, (pixels, self.width, self.width, self.classes)), {}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """With noise in the training split alone."""
        batch = super().batch(generator, split)
        shape = (2, self.batch_size, self.width)
        keep = torch.ones(shape)
        if split == "train":
            at_random = nets.integers(generator, self.classes, self.batch_size)
            wrong = torch.rand(self.batch_size, generator=generator) < self.wrong
            batch["y"] = torch.where(wrong, at_random, batch["y"])
            keep = (torch.rand(shape, generator=generator) >= self.dropped) / (1 - self.dropped)
        return batch | {"keep0": keep[0], "keep1": keep[1]}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean over the images."""
        x = batch["x"].flatten(1)
        for i in range(2):
            x = functional.relu(nets.dense(params, f"layer{i}", x)) * batch[f"keep{i}"]
        return nets.classification_loss(nets.dense(params, "layer2", x), batch["y"])
