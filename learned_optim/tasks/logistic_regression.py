"""Logistic regression of generated data whose features have very different scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Floats, Ints, axis
from learned_optim.tasks.base import Batch, Params, Split, Task


@dataclass(frozen=True)
class LogisticRegressionTask(Task):
    """`mean softplus(-sign * (x . w + b)) + decay / 2 ||w||^2`, convex.

    `x_j = scale_j z_j`, z ~ N(0, 1), scales log-spaced over `decades` decades and shuffled; the
    label is 1 with probability `sigmoid(margin * z . direction)`, of a unit direction. The
    condition number of the Hessian is about `10^(2 decades)`. Parameters `weight` `(features,)`,
    `bias` `(1,)`; constants `scale` and `direction` `(features,)`; minibatch `z` `(batch_size,
    features)` and `uniform` `(batch_size,)`, from which the labels follow.
    """

    features: int
    decades: float
    margin: float
    decay: float
    batch_size: int

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Zero, as is usual for convex problems; scales and direction are drawn for each run."""
        device = generator.device
        exponents = torch.linspace(-0.5, 0.5, self.features, device=device) * self.decades
        order = torch.randperm(self.features, generator=generator, device=device)
        direction = nets.normal(generator, (self.features,))
        params = {
            "weight": torch.zeros(self.features, device=device),
            "bias": torch.zeros(1, device=device),
        }
        return params, {
            "scale": 10.0 ** exponents[order],
            "direction": direction / direction.norm(),
        }

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """Fresh examples; the splits have the same distribution."""
        z = nets.normal(generator, (self.batch_size, self.features))
        uniform = torch.rand(self.batch_size, generator=generator, device=generator.device)
        return {"z": z, "uniform": uniform}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Softplus of the negative margin: linear where an exponential would overflow."""
        certainty = torch.sigmoid(self.margin * (batch["z"] @ batch["direction"]))
        sign = (batch["uniform"] < certainty).to(certainty.dtype) * 2.0 - 1.0
        scores = (batch["z"] * batch["scale"]) @ params["weight"] + params["bias"]
        penalty = 0.5 * self.decay * params["weight"].square().sum()
        return functional.softplus(-sign * scores).mean() + penalty


@dataclass(frozen=True)
class LogisticRegression(AxesFamily):
    """Binary logistic regression.

    Args (all axes, see `axes`):
        features: number of features.
        decades: decimal logarithm of the largest feature scale over the smallest.
        margin: how certain the labels are; they are noisy below about 10.
        decay: of the weights, in the loss.
        batch_size: examples in a minibatch.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "logistic_regression"
    task = LogisticRegressionTask

    features: Ints = axis(10, 30, 100, within=(1, 100_000))
    decades: Floats = axis(0.0, 1.0, 2.0, 3.0, within=(0.0, 8.0))
    margin: Floats = axis(2.0, 10.0, within=(0.0, 1e6))
    decay: Floats = axis(0.0, 1e-4, within=(0.0, 100.0))
    batch_size: Ints = axis(32, 128, within=(1, 65_536))
