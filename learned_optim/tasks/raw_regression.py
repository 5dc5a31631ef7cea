"""Regression of real data whose targets nobody rescaled."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Floats, Ints, Strings, axis
from learned_optim.tasks.base import Batch, Params, Split, Task
from learned_optim.tasks.datasets import DataUnavailable

_FEATURES = 10
_TEST = 88  # a fifth of 442 patients


@dataclass(frozen=True)
class RawRegressionTask(Task):
    """Mean squared error of an MLP on scikit-learn's diabetes data, targets 25 to 346.

    Features have unit variance; targets are as they come, times `target_scale`. Parameters
    `layer<i>.weight`, `layer<i>.bias`; minibatch `x` `(batch_size, 10)`, `y` `(batch_size,)`.
    """

    depth: int
    width: int
    activation: str
    scheme: str
    target_scale: float
    batch_size: int

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """Weights by `nets.weight`, biases zero; there are no constants."""
        sizes = (_FEATURES, *([self.width] * self.depth), 1)
        return nets.mlp_params(generator, sizes, self.scheme), {}

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """`batch_size` patients drawn with replacement."""
        x, y = (tensor.to(generator.device) for tensor in _diabetes(split))
        index = nets.integers(generator, len(y), self.batch_size)
        return {"x": x[index], "y": y[index]}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """On the targets' own scale: about 3e4 at the start."""
        x = batch["x"].to(params["layer0.weight"].dtype)
        output = nets.mlp(params, x, self.depth + 1, self.activation).squeeze(-1)
        return (output - self.target_scale * batch["y"]).square().mean()


class _Patients(NamedTuple):
    x: Tensor
    y: Tensor


@functools.lru_cache(maxsize=2)
def _diabetes(split: Split) -> _Patients:
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        raise DataUnavailable(
            "the diabetes data need scikit-learn, which cannot be imported. "
            "Install the extra: pip install 'learned-optim[meta-training]'"
        ) from error
    features, targets = load_diabetes(return_X_y=True)
    # scikit-learn's columns are centred and of norm one.
    x = torch.as_tensor(features, dtype=torch.float32) * len(features) ** 0.5
    y = torch.as_tensor(targets, dtype=torch.float32)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    chosen = order[:_TEST] if split == "test" else order[_TEST:]
    return _Patients(x[chosen], y[chosen])


@dataclass(frozen=True)
class RawRegression(AxesFamily):
    """Regression with large targets.

    Args (all axes, see `axes`):
        depth: number of hidden layers.
        width: units in each.
        activation: one of `nets.ACTIVATIONS`.
        scheme: initialisation, one of `nets.SCHEMES`; biases start at zero.
        target_scale: factor on the targets.
        batch_size: patients in a minibatch.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "raw_regression"
    task = RawRegressionTask

    depth: Ints = axis(1, 2, within=(0, 64))
    width: Ints = axis(16, 32, 64, within=(1, 16_384))
    activation: Strings = axis("relu", "tanh", among=nets.ACTIVATIONS)
    scheme: Strings = axis("he", "torch", among=nets.SCHEMES)
    target_scale: Floats = axis(1.0, within=(1e-6, 1e6))
    batch_size: Ints = axis(32, 64, within=(1, 65_536))
