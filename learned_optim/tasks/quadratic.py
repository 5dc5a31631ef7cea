"""Random quadratics, section 3.1 of "Learning to learn by gradient descent by gradient descent".

Andrychowicz et al., NIPS 2016, https://arxiv.org/abs/1606.04474.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.tasks.base import Batch, Params, Task, TaskFamily


@dataclass(frozen=True)
class QuadraticTask(Task):
    """`f(theta) = ||gain * W theta - y||^2`: W and y are drawn anew for every run.

    Parameter `theta` `(dim,)`; constants `W` `(dim, dim)` and `y` `(dim,)`.
    """

    dim: int
    init_std: float
    gain: float

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """`theta` ~ N(0, init_std^2), `W` ~ gain * N(0, 1), `y` ~ N(0, 1), all iid."""
        device = generator.device
        # In one draw: this runs once for each function of a meta-batch.
        drawn = torch.randn(self.dim * (self.dim + 2), generator=generator, device=device)
        weight, y, theta = drawn.split((self.dim * self.dim, self.dim, self.dim))
        constants = {"W": self.gain * weight.view(self.dim, self.dim), "y": y.clone()}
        return {"theta": self.init_std * theta}, constants

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The squared norm, not its mean, as in the paper."""
        residual = batch["W"] @ params["theta"] - batch["y"]
        return residual.square().sum()


@dataclass(frozen=True)
class Quadratic(TaskFamily):
    """The paper's quadratics.

    Paper / released code / ours, where they differ:
    - `W`, `y`: N(0, 1) / U(0, 1) / N(0, 1);
    - `theta`: Gaussian of unstated width / N(0, 0.01^2) / N(0, 0.01^2);
    - loss: one function each / averaged over a batch of functions / one function each.

    Args:
        dim: length of theta, and both dimensions of W.
        init_std: standard deviation of theta at the start.
        gain: factor on W, which scales gradients by its square: 1 in the paper.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "quadratic"

    dim: int = 10
    init_std: float = 0.01
    gain: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= 10_000:
            raise ValueError(f"dim must be in [1, 10000] but is {self.dim}")
        if not 0.0 <= self.init_std <= 1e3:
            raise ValueError(f"init_std must be in [0, 1e3] but is {self.init_std}")
        if not 0.0 < self.gain <= 1e3:
            raise ValueError(f"gain must be in (0, 1e3] but is {self.gain}")

    def sample(self, generator: torch.Generator) -> QuadraticTask:
        """The structure does not vary; what does is drawn by `QuadraticTask.init`."""
        return QuadraticTask(self.dim, self.init_std, self.gain)
