"""Another start: where training has been before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from learned_optim.tasks.augment.base import Augmentation, ChangedTask, check_range, log_uniform
from learned_optim.tasks.base import Batch, Params, Task


@dataclass(frozen=True)
class TrainedTask(ChangedTask):
    """Starts where Adam ends after `steps`, its rate falling from `lr` to zero by a cosine.

    With `other`, the constants are drawn anew afterwards: the network goes on with another
    teacher, say, or other clusters.
    """

    steps: int
    lr: float
    other: bool

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Trained from a start of the inner task's, in every run its own."""
        start, constants = self.task.init(generator)
        params = {key: value.requires_grad_() for key, value in start.items()}
        with torch.enable_grad():
            optimizer = torch.optim.Adam(params.values(), lr=self.lr)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
            for _ in range(self.steps):
                optimizer.zero_grad()
                self.task.loss(params, constants | self.task.batch(generator)).backward()
                optimizer.step()
                schedule.step()
        if self.other:
            constants = self.task.init(generator)[1]
        return {key: value.detach() for key, value in params.items()}, constants


@dataclass(frozen=True)
class WarmStart(Augmentation):
    """Begin with networks that were trained: a rule for fine-tuning has to know those too.

    Args:
        low: least steps of that training; they are log-uniform over [low, high], in each task.
        high: most.
        lr: of Adam in it, at first.
        other: fraction of the changed tasks that go on with other constants.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "warm_start"

    low: int = 50
    high: int = 400
    lr: float = 3e-3
    other: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.low, self.high)
        check_range(self.lr, self.lr)
        if not 0.0 <= self.other <= 1.0:
            raise ValueError(f"other must be in [0, 1] but is {self.other}")

    def change(self, task: Task, generator: torch.Generator) -> Task:
        """Draw how long, and whether the constants change."""
        steps = round(float(log_uniform(generator, 1, self.low, self.high)))
        other = torch.rand(1, generator=generator, device=generator.device).item() < self.other
        return TrainedTask(task, steps, self.lr, other)
