"""More or less noise: in the gradients, in the size of the minibatches, in the labels."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.tasks import nets
from learned_optim.tasks.augment.base import Augmentation, ChangedTask, check_range, log_uniform
from learned_optim.tasks.base import Batch, Params, Split, Task


@dataclass(frozen=True)
class NoisyGradientTask(ChangedTask):
    """`loss(theta) + <noise, theta>`: pure, and its gradient is the inner one plus the noise.

    Minibatch `noise<level>.<name>`, N(0, std^2) of the shape of each parameter, in training only.
    """

    std: float
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """As the inner task, and fresh noise; the test split has none, so that losses compare."""
        std = self.std if split == "train" else 0.0
        batch = self.task.batch(generator, split)
        noise = {
            f"noise{self.level}.{name}": nets.normal(generator, shape, std)
            for name, shape in self.shapes
        }
        return batch | noise

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The inner loss and the linear term."""
        terms = [(batch[f"noise{self.level}.{name}"] * params[name]).sum() for name in params]
        return self.task.loss(params, batch) + torch.stack(terms).sum()


@dataclass(frozen=True)
class GradientNoise(Augmentation):
    """Add Gaussian noise to the gradient; its `std` is log-uniform over [low, high], in each task.

    The loss is noisy too, by `std * ||theta||`: a gradient comes from a loss here.

    Raises:
        ValueError: unless 0 < low <= high.
    """

    name: ClassVar[str] = "gradient_noise"

    low: float = 1e-4
    high: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.low, self.high)

    def change(self, task: Task, generator: torch.Generator) -> Task:
        """The shapes are those of any start."""
        std = float(log_uniform(generator, 1, self.low, self.high))
        params, _ = task.init(torch.Generator().manual_seed(0))
        shapes = tuple((name, tuple(value.shape)) for name, value in params.items())
        return NoisyGradientTask(task, std, shapes)


@dataclass(frozen=True)
class BatchSize(Augmentation):
    """Draw the batch size log-uniformly over [low, high], for families without such an axis too.

    Raises:
        ValueError: unless 1 <= low <= high, or when sampling, if tasks have no minibatches.
    """

    name: ClassVar[str] = "batch_size"

    low: int = 4
    high: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.low <= self.high:
            raise ValueError(f"1 <= low <= high expected but low is {self.low}, high {self.high}")

    def change(self, task: Task, generator: torch.Generator) -> Task:
        """The innermost task with another size."""
        return _resize(task, round(float(log_uniform(generator, 1, self.low, self.high))))


def _resize(task: Task, size: int) -> Task:
    if isinstance(task, ChangedTask):
        return dataclasses.replace(task, task=_resize(task.task, size))
    if not hasattr(task, "batch_size"):
        raise ValueError(f"batch_size can not be changed: {type(task).__name__} has none")
    return dataclasses.replace(task, batch_size=size)  # type: ignore[type-var]


@dataclass(frozen=True)
class NoisyLabelsTask(ChangedTask):
    """Replaces each label `y`, with probability `fraction`, by any; in training only."""

    fraction: float
    labels: int

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """As the inner task, some labels replaced."""
        batch = self.task.batch(generator, split)
        if split == "test":
            return batch
        y = batch["y"]
        wrong = nets.integers(generator, self.labels, len(y))
        chosen = torch.rand(len(y), generator=generator, device=generator.device) < self.fraction
        return batch | {"y": torch.where(chosen, wrong, y)}


@dataclass(frozen=True)
class LabelNoise(Augmentation):
    """Replace a fraction of the labels of a classification task by random ones.

    Raises:
        ValueError: unless 0 <= fraction <= 1, or when sampling, if tasks do not classify.
    """

    name: ClassVar[str] = "label_noise"

    fraction: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.fraction <= 1.0:
            raise ValueError(f"fraction must be in [0, 1] but is {self.fraction}")

    def change(self, task: Task, generator: torch.Generator) -> Task:
        """The number of labels is the task's `classes`."""
        labels = getattr(task, "classes", None)
        if labels is None:
            raise ValueError(f"label_noise needs a classification task, not {type(task).__name__}")
        return NoisyLabelsTask(task, self.fraction, labels)
