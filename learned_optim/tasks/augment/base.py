"""What all augmentations share."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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


def check_range(low: float, high: float) -> None:
    """Refuse what is no range of positive numbers."""
    if not 0.0 < low <= high < math.inf:
        raise ValueError(f"0 < low <= high expected but low is {low} and high is {high}")


def log_uniform(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    """`(count,)`."""
    fraction = torch.rand(count, generator=generator, device=generator.device)
    return torch.exp(math.log(low) + fraction * math.log(high / low))
