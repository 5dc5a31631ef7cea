"""The convolutional classifiers of section 3.3 of the paper, on CIFAR-10 and parts of it.

Andrychowicz et al., "Learning to learn by gradient descent by gradient descent", NIPS 2016,
https://arxiv.org/abs/1606.04474.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import datasets, nets
from learned_optim.tasks.base import Batch, Params, Split, Task, TaskFamily

# What the paper calls CIFAR-10, CIFAR-5 and CIFAR-2, and the labels that LSTM-sub is trained on,
# none of which is in the latter two. The paper does not say which labels it took.
LABELS: dict[str, tuple[int, ...]] = {
    "all": tuple(range(10)),
    "first_five": (0, 1, 2, 3, 4),
    "first_two": (0, 1),
    "last_five": (5, 6, 7, 8, 9),
}
SIDES = {"cifar10": 32, "digits": 8}
_CHANNELS = {"cifar10": 3, "digits": 1}
_LAYERS = 3


@dataclass(frozen=True)
class CifarConvTask(Task):
    """Three convolutions 5x5 with batch normalisation, pooling and ReLU, then two dense layers.

    Parameters `conv<i>.weight` `(channels, in, 5, 5)`, which come first; `norm<i>.weight` and
    `norm<i>.bias` `(channels,)`; `hidden.*`; `head.*`. Minibatch `x` `(batch_size, C, H, W)` in
    [0, 1], centred in the loss, and `y` `(batch_size,)` int64, numbered from 0.
    """

    labels: str
    channels: int
    hidden: int
    batch_size: int
    dataset: str

    @property
    def classes(self) -> int:
        """Number of labels."""
        return len(LABELS[self.labels])

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Weights N(0, 1 / fan_in), biases zero, scales one; there are no constants."""
        widths = (_CHANNELS[self.dataset], *([self.channels] * _LAYERS))
        params: Params = {}
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            # No bias: the normalisation that follows would take it off again.
            params |= nets.conv_params(
                generator, f"conv{i}", inputs, outputs, "lecun", size=5, bias=False
            )
        for i in range(_LAYERS):
            params |= nets.norm_params(f"norm{i}", self.channels, generator.device)
        features = self.channels * (SIDES[self.dataset] // 2**_LAYERS) ** 2
        params |= nets.dense_params(generator, "hidden", features, self.hidden, "lecun")
        params |= nets.dense_params(generator, "head", self.hidden, self.classes, "lecun")
        return params, {}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """`batch_size` images of the labels, drawn with replacement."""
        images, labels = _subset(self.dataset, self.labels, split, str(generator.device))
        index = nets.integers(generator, len(labels), self.batch_size)
        x = datasets.scaled(images.flatten(1).index_select(0, index))
        return {"x": x.view(-1, *images.shape[1:]), "y": labels.index_select(0, index)}

    def full(self, split: Split = "test") -> Batch:
        """Every image of the labels in a split as one batch, for evaluation."""
        images, labels = _subset(self.dataset, self.labels, split, "cpu")
        return {"x": datasets.scaled(images), "y": labels}

    def logits(self, params: Params, x: Tensor) -> Tensor:
        """`(B, C, H, W)` -> `(B, classes)`; the normalisation is over this very batch."""
        for i in range(_LAYERS):
            x = functional.max_pool2d(nets.conv(params, f"conv{i}", x), 2)
            scale, shift = params[f"norm{i}.weight"], params[f"norm{i}.bias"]
            x = torch.relu(functional.batch_norm(x, None, None, scale, shift, training=True))
        x = torch.relu(nets.dense(params, "hidden", x.flatten(1)))
        return nets.dense(params, "head", x)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean cross entropy over the minibatch."""
        x = nets.centred(batch["x"]).to(params["head.weight"].dtype)
        return functional.cross_entropy(self.logits(params, x), batch["y"])


@dataclass(frozen=True)
class CifarConv(TaskFamily):
    """The paper's convolutional network; the defaults are its CIFAR-10 experiment.

    Paper / ours, where the paper is silent or we depart:
    - order: not stated / convolution, pooling, normalisation, ReLU;
    - start: not stated / N(0, 1 / fan_in), biases 0, scales 1;
    - minibatches: of 128 / of `batch_size`, and 128 is the default;
    - labels of CIFAR-5 and CIFAR-2: not stated / the first five, the first two.

    A rule that was meta-trained here has seen CIFAR-10's training images, and so has no result to
    show on the meta-test set of `learned_optim.tasks.splits`.

    Args:
        labels: a key of `LABELS`.
        channels: of each convolution.
        hidden: units of the dense layer.
        batch_size: images in a minibatch.
        dataset: "cifar10", or "digits" (8x8, no download).

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "cifar_conv"

    labels: str = "all"
    channels: int = 16
    hidden: int = 32
    batch_size: int = 128
    dataset: str = "cifar10"

    def __post_init__(self) -> None:
        for field, low, high in (
            ("channels", 1, 512),
            ("hidden", 1, 4096),
            ("batch_size", 2, 8192),
        ):
            if not low <= getattr(self, field) <= high:
                raise ValueError(
                    f"{field} must be in [{low}, {high}] but is {getattr(self, field)}"
                )
        for field, known in (("labels", tuple(LABELS)), ("dataset", tuple(SIDES))):
            if getattr(self, field) not in known:
                raise ValueError(f"{field} must be one of {known} but is {getattr(self, field)!r}")

    def sample(self, generator: torch.Generator) -> CifarConvTask:
        """The structure is the config's; starts and minibatches are drawn by the task."""
        return CifarConvTask(self.labels, self.channels, self.hidden, self.batch_size, self.dataset)


@functools.lru_cache(maxsize=8)
def _subset(dataset: str, labels: str, split: Split, device: str) -> datasets.Images:
    """The images of some labels, which are numbered anew from 0."""
    images, numbers = datasets.load(dataset, split, device)
    chosen = LABELS[labels]
    if len(chosen) == 10:
        return datasets.Images(images, numbers)
    place = torch.full((10,), -1, device=device)
    place[list(chosen)] = torch.arange(len(chosen), device=device)
    kept = place[numbers] >= 0
    return datasets.Images(images[kept], place[numbers[kept]])
