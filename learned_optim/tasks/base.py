"""The contract of a task family: a distribution over optimizees.

A `Task` is one optimizee with a static structure (its shapes); its `loss` is a pure function, so
several runs of the same task differ only in tensors and are batched with `torch.func.vmap` over
the leading dimension of `params` and `batch`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

Params = dict[str, Tensor]
Batch = dict[str, Tensor]
Split = Literal["train", "test"]


class Task(ABC):
    """One optimizee: where it starts, its data, its loss.

    Everything random comes from the generator that is passed in.

    Class attributes:
        batched: whether `torch.func.vmap` can batch `loss`; where not, runs take turns.
    """

    batched: ClassVar[bool] = True

    @abstractmethod
    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Initial parameters, and the constants of this run (a quadratic's W and y, say)."""

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """A fresh minibatch; none for deterministic losses."""
        return {}

    @abstractmethod
    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The scalar loss on `batch`, which holds the run's constants and the minibatch."""


@dataclasses.dataclass(frozen=True)
class TaskFamily(ABC):
    """A distribution over tasks. A subclass is a frozen dataclass whose fields are its config.

    Class attributes:
        name: the key in `TASK_FAMILIES` and in recipes.
    """

    name: ClassVar[str]

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Task:
        """Draw a task: the axes of variation that change its structure."""
