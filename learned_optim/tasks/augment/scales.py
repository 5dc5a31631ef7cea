"""The same functions in other coordinates or units: scales and signs, drawn for each run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.tasks.augment.base import Augmentation, ChangedTask, check_range, log_uniform
from learned_optim.tasks.base import Batch, Params, Task


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
        scales = log_uniform(generator, count, self.low, self.high).expand(len(params))
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
        check_range(self.low, self.high)

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
        factor = log_uniform(generator, 1, self.low, self.high).squeeze(0)
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
        check_range(self.low, self.high)

    def change(self, task: Task, generator: torch.Generator) -> Task:
        """The factor is drawn by each run."""
        return ScaledLossTask(task, self.low, self.high)
