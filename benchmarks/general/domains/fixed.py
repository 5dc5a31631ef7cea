"""One problem as a family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from learned_optim.tasks.base import Task, TaskFamily


@dataclass(frozen=True)
class Fixed(TaskFamily):
    """The same task at every draw.

    Args:
        task: that.
    """

    name: ClassVar[str] = "fixed"

    task: Task

    def sample(self, generator: torch.Generator) -> Task:
        """Nothing is drawn."""
        return self.task
