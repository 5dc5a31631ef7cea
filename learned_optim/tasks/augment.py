"""Augmentations: wrappers that take a family and give a family. They compose.

In a recipe, `augment` of a `[[tasks]]` entry is a list of tables, the innermost first:

    [[tasks]]
    family = "cnn"
    augment = [{name = "label_noise", fraction = 0.1}, {name = "reparametrise"}]
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from learned_optim.tasks import nets
from learned_optim.tasks.base import Batch, Params, Split, Task, TaskFamily


@dataclass(frozen=True)
class Augmentation(TaskFamily):
    """A family made from another.

    Args:
        family: the other.
        probability: fraction of the tasks that are changed; the others are as they were.
    """

    family: TaskFamily
    probability: float = dataclasses.field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"probability must be in [0, 1] but is {self.probability}")

    def sample(self, generator: torch.Generator) -> Task:
        """A task of the inner family, changed with the given probability."""
        task = self.family.sample(generator)
        chosen = torch.rand(1, generator=generator, device=generator.device).item()
        return self.change(task, generator) if chosen < self.probability else task

    @abstractmethod
    def change(self, task: Task, generator: torch.Generator) -> Task:
        """The changed task."""


@dataclass(frozen=True)
class ChangedTask(Task):
    """A task that does what another does; subclasses change a part of it."""

    task: Task

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        # Only for what is not here, such as `classes`; copies and pickles ask before there is any.
        if name.startswith("__") or name == "task":
            raise AttributeError(name)
        return getattr(self.task, name)

    @property
    def level(self) -> int:
        """How many changes lie inside: two of the same kind must not share names in a batch."""
        return self.task.level + 1 if isinstance(self.task, ChangedTask) else 0

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """As the inner task."""
        return self.task.init(generator)

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """As the inner task."""
        return self.task.batch(generator, split)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """As the inner task."""
        return self.task.loss(params, batch)


def _check_range(low: float, high: float) -> None:
    if not 0.0 < low <= high < math.inf:
        raise ValueError(f"0 < low <= high expected but low is {low} and high is {high}")


def _log_uniform(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    fraction = torch.rand(count, generator=generator, device=generator.device)
    return torch.exp(math.log(low) + fraction * math.log(high / low))


@dataclass(frozen=True)
class ReparametrisedTask(ChangedTask):
    """`loss(scale * theta')`, from `theta' = theta / scale`: the same start and the same functions.

    Constant `scales<level>`: one scale for each tensor, drawn for each run.
    """

    low: float
    high: float
    per_tensor: bool

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """The inner start, divided by the scales."""
        params, constants = self.task.init(generator)
        count = len(params) if self.per_tensor else 1
        scales = _log_uniform(generator, count, self.low, self.high).expand(len(params))
        start = {name: value / scales[i] for i, (name, value) in enumerate(params.items())}
        return start, constants | {f"scales{self.level}": scales}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The inner loss of the scaled parameters."""
        scales = batch[f"scales{self.level}"].unbind()
        inner = {
            name: value * scale for (name, value), scale in zip(params.items(), scales, strict=True)
        }
        return self.task.loss(inner, batch)


@dataclass(frozen=True)
class Reparametrise(Augmentation):
    """Scale the parameters, log-uniformly over [low, high], each tensor by itself or all alike.

    Random scaling of the parameters during meta-training: Lv, Jiang and Li, "Learning gradient
    descent: better generalization and longer horizons", 2017, section 4.1 (every coordinate there).

    Raises:
        ValueError: unless 0 < low <= high.
    """

    name: ClassVar[str] = "reparametrise"

    low: float = 1e-3
    high: float = 1e3
    per_tensor: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range(self.low, self.high)

    def change(self, task: Task, generator: torch.Generator) -> Task:
        """The scales are drawn by each run."""
        return ReparametrisedTask(task, self.low, self.high, self.per_tensor)


@dataclass(frozen=True)
class FlippedTask(ChangedTask):
    """`loss(sign * theta')` from `theta' = sign * theta`: the same start and the same functions.

    Constants `signs<level>.<parameter>`: -1 or 1 for each coordinate, drawn for each run.
    """

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """The inner start, times the signs."""
        params, constants = self.task.init(generator)
        signs = {
            name: 2.0 * torch.randint(2, p.shape, generator=generator, device=p.device) - 1.0
            for name, p in params.items()
        }
        start = {name: value * signs[name] for name, value in params.items()}
        return start, constants | {self._key(name): value for name, value in signs.items()}

    def _key(self, name: str) -> str:
        return f"signs{self.level}.{name}"

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The inner loss of the flipped parameters."""
        inner = {name: value * batch[self._key(name)] for name, value in params.items()}
        return self.task.loss(inner, batch)


@dataclass(frozen=True)
class FlipSigns(Augmentation):
    """Flip the sign of each coordinate with probability 1/2, once a run.

    An update rule that is odd in the gradient does not notice. Without it, a small answer to a zero
    gradient moves all coordinates the same way, which on non-negative inputs adds up: the
    meta-loss is very steep in that one direction, and every estimator suffers.
    """

    name: ClassVar[str] = "flip_signs"

    def change(self, task: Task, generator: torch.Generator) -> Task:
        """The signs are drawn by each run."""
        return FlippedTask(task)


@dataclass(frozen=True)
class ScaledLossTask(ChangedTask):
    """`factor * loss(theta)`; constant `factor<level>`, drawn for each run."""

    low: float
    high: float

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """As the inner task, and the factor."""
        params, constants = self.task.init(generator)
        factor = _log_uniform(generator, 1, self.low, self.high).squeeze(0)
        return params, constants | {f"factor{self.level}": factor}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The inner loss times the factor."""
        return batch[f"factor{self.level}"] * self.task.loss(params, batch)


@dataclass(frozen=True)
class LossScale(Augmentation):
    """Scale the loss, log-uniformly over [low, high].

    Raises:
        ValueError: unless 0 < low <= high.
    """

    name: ClassVar[str] = "loss_scale"

    low: float = 1e-3
    high: float = 1e3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_range(self.low, self.high)

    def change(self, task: Task, generator: torch.Generator) -> Task:
        """The factor is drawn by each run."""
        return ScaledLossTask(task, self.low, self.high)


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
        _check_range(self.low, self.high)

    def change(self, task: Task, generator: torch.Generator) -> Task:
        """The shapes are those of any start."""
        std = float(_log_uniform(generator, 1, self.low, self.high))
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
        return _resize(task, round(float(_log_uniform(generator, 1, self.low, self.high))))


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


AUGMENTATIONS: Mapping[str, type[Augmentation]] = {
    augmentation.name: augmentation
    for augmentation in (Reparametrise, FlipSigns, LossScale, GradientNoise, BatchSize, LabelNoise)
}
