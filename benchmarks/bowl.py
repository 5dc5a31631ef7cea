"""An optimizee whose meta-gradient is known: the bowl f = theta^2 / 2 under gradient descent.

With step a = exp(log_lr) and theta_0 = 1, theta_t = (1 - a)^t, so the meta-loss sum_t f(theta_t) is
a formula of log_lr, the only meta-parameter of the rule `learnable_sgd`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.tasks.base import Batch, Params, Task, TaskFamily


class BowlTask(Task):
    """Parameter `theta` `(1,)`, which starts at 1."""

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """See `Task`."""
        return {"theta": torch.ones(1)}, {}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """See `Task`."""
        return 0.5 * (params["theta"] ** 2).sum()


class Bowl(TaskFamily):
    """Always the same one."""

    name: ClassVar[str] = "bowl"

    def sample(self, generator: torch.Generator) -> BowlTask:
        """See `TaskFamily`."""
        return BowlTask()


@dataclass(frozen=True)
class Formula:
    """The meta-loss over a whole episode, and its gradients.

    Attributes:
        rate: a, the step at which the gradient is taken.
        steps: of the episode.
    """

    rate: float
    steps: int

    def meta_loss(self, log_lr: Tensor) -> Tensor:
        """`(...)` -> `(...)`."""
        steps = torch.arange(1, self.steps + 1, dtype=torch.float64)
        return (0.5 * (1 - log_lr.exp().unsqueeze(-1)) ** (2 * steps)).sum(-1)

    def gradient(self) -> float:
        """Of the meta-loss with respect to log_lr."""
        point = torch.tensor(math.log(self.rate), dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(self.meta_loss(point), point)
        return float(found)

    def smoothed_gradient(self, sigma: float) -> float:
        """Of E[L(m + sigma eps)], which evolution strategies estimate: E[L eps] / sigma."""
        eps = torch.linspace(-8, 8, 20001, dtype=torch.float64)
        density = torch.exp(-(eps**2) / 2) / math.sqrt(2 * math.pi)
        values = self.meta_loss(math.log(self.rate) + sigma * eps)
        return float(torch.trapezoid(values * eps * density, eps) / sigma)
