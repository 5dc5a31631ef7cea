"""Meta-losses: what a window of inner losses is worth. The registry is `META_LOSSES`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class MetaLoss(ABC):
    """A differentiable function of the inner losses of a window."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, losses: Tensor) -> Tensor:
        """`(T, *lead)`, the losses after each of T steps -> `(*lead)`."""

    def step_weights(self, losses: Tensor) -> Tensor:
        """`d meta-loss / d losses`, `(T, *lead)`: the weight of each step's gradient."""
        leaf = losses.detach().requires_grad_()
        with torch.enable_grad():
            (weights,) = torch.autograd.grad(self(leaf).sum(), leaf)
        return weights


@dataclass(frozen=True)
class Sum(MetaLoss):
    """The weighted sum over the window, the paper's equation 3.

    Args:
        late: power of the weights `w_t = (t / T)^late`; 0 is the paper's choice, w_t = 1.
    """

    name: ClassVar[str] = "sum"

    late: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.late <= 100:
            raise ValueError(f"late must be in [0, 100] but is {self.late}")

    def __call__(self, losses: Tensor) -> Tensor:
        """See `MetaLoss`."""
        if not self.late:
            return losses.sum(0)
        count = losses.shape[0]
        times = torch.arange(1, count + 1, device=losses.device, dtype=losses.dtype) / count
        return torch.tensordot(times**self.late, losses, 1)


@dataclass(frozen=True)
class Final(MetaLoss):
    """The last loss of the window only (the paper's equation 2, cut to a window)."""

    name: ClassVar[str] = "final"

    def __call__(self, losses: Tensor) -> Tensor:
        """See `MetaLoss`."""
        return losses[-1]


@dataclass(frozen=True)
class Log(MetaLoss):
    """The mean logarithm over the window: every task and phase counts by ratios.

    A window with a loss below `-floor` has none, and counts as one that diverged.

    Args:
        floor: added to the loss, so that a solved task stops to dominate.
    """

    name: ClassVar[str] = "log"

    floor: float = 1e-8

    def __post_init__(self) -> None:
        if self.floor < 0:
            raise ValueError(f"floor must be 0 or more but is {self.floor}")

    def __call__(self, losses: Tensor) -> Tensor:
        """See `MetaLoss`."""
        return (losses + self.floor).log().mean(0)


@dataclass(frozen=True)
class LogTail(MetaLoss):
    """The logarithm of the mean over the end of the window: what counts once training is done.

    Only with an estimator whose window is the whole episode is that the end of training. A mean
    below `-floor` has no logarithm, and its window counts as one that diverged.

    Args:
        fraction: of the steps.
        floor: added to the mean, so that a solved task stops to dominate.
    """

    name: ClassVar[str] = "log_tail"

    fraction: float = 0.05
    floor: float = 1e-8

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1 or self.floor < 0:
            raise ValueError(f"fraction in (0, 1] and floor >= 0 expected: {self}")

    def __call__(self, losses: Tensor) -> Tensor:
        """See `MetaLoss`."""
        count = max(1, round(self.fraction * losses.shape[0]))
        return (losses[-count:].mean(0) + self.floor).log()


META_LOSSES: dict[str, type[MetaLoss]] = {loss.name: loss for loss in (Sum, Final, Log, LogTail)}
