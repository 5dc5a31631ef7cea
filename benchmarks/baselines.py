"""The hand-written optimizers of torch.optim, for many learning rates and many runs at once.

Parameters, gradients and state carry two leading dimensions, `(R, K, ...)`: R runs, K learning
rates. Every update is the arithmetic of its torch.optim class, tested to be equal; running the
class itself for each of the rates and runs would take about fifty times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from learned_optim.tasks import Params

Slots = dict[str, Tensor]
Update = Callable[[Tensor, Slots, int], Tensor]

_MOMENTUM = 0.9


def _sgd(grad: Tensor, slots: Slots, step: int) -> Tensor:
    return grad


def _momentum(grad: Tensor, slots: Slots, step: int) -> Tensor:
    # torch starts the buffer with the first gradient, which zero times 0.9 plus it is, too.
    buffer = slots.setdefault("buffer", torch.zeros_like(grad))
    return buffer.mul_(_MOMENTUM).add_(grad)


def _nag(grad: Tensor, slots: Slots, step: int) -> Tensor:
    return grad.add(_momentum(grad, slots, step), alpha=_MOMENTUM)


def _adagrad(grad: Tensor, slots: Slots, step: int) -> Tensor:
    total = slots.setdefault("sum", torch.zeros_like(grad))
    total.addcmul_(grad, grad)
    return grad / total.sqrt().add_(1e-10)


def _rmsprop(grad: Tensor, slots: Slots, step: int) -> Tensor:
    square = slots.setdefault("square", torch.zeros_like(grad))
    square.mul_(0.99).addcmul_(grad, grad, value=0.01)
    return grad / square.sqrt().add_(1e-8)


def _adam(grad: Tensor, slots: Slots, step: int) -> Tensor:
    m = slots.setdefault("m", torch.zeros_like(grad))
    v = slots.setdefault("v", torch.zeros_like(grad))
    m.mul_(0.9).add_(grad, alpha=0.1)
    v.mul_(0.999).addcmul_(grad, grad, value=0.001)
    denominator = v.div(1 - 0.999**step).sqrt_().add_(1e-8)
    return m.div(1 - 0.9**step).div_(denominator)


@dataclass(frozen=True)
class Baseline:
    """An optimizer with one number to tune.

    Attributes:
        label: its name in tables and figures.
        update: `(grad, slots, step) -> direction`; the step taken is `-lr * direction`.
        torch_class: the class in torch.optim that it equals.
        options: that class's arguments, next to `lr`.
    """

    label: str
    update: Update
    torch_class: type[torch.optim.Optimizer]
    options: Mapping[str, Any] = field(default_factory=dict)


BASELINES: dict[str, Baseline] = {
    "sgd": Baseline("SGD", _sgd, torch.optim.SGD),
    "momentum": Baseline("Momentum", _momentum, torch.optim.SGD, {"momentum": _MOMENTUM}),
    "nag": Baseline("NAG", _nag, torch.optim.SGD, {"momentum": _MOMENTUM, "nesterov": True}),
    "adagrad": Baseline("AdaGrad", _adagrad, torch.optim.Adagrad),
    "rmsprop": Baseline("RMSprop", _rmsprop, torch.optim.RMSprop),
    "adam": Baseline("Adam", _adam, torch.optim.Adam),
}


class Sweep:
    """Steps all learning rates of several baselines together, so that they share minibatches.

    Copy k of the parameters belongs to the k-th pair of `pairs`.

    Args:
        rates: baseline name -> its learning rates.
    """

    def __init__(self, rates: Mapping[str, Sequence[float]]) -> None:
        self.pairs = [(name, rate) for name, values in rates.items() for rate in values]
        self._parts: list[tuple[Update, slice, Tensor]] = []
        start = 0
        for name, values in rates.items():
            part = slice(start, start + len(values))
            # float64, as torch.optim's Python floats are until they meet the parameter.
            numbers = torch.tensor(values, dtype=torch.float64)
            self._parts.append((BASELINES[name].update, part, numbers))
            start += len(values)
        self._slots: dict[tuple[int, str], Slots] = {}
        self._step = 0

    @property
    def copies(self) -> int:
        """K, the number of pairs."""
        return len(self.pairs)

    def step(self, params: Params, grads: Params) -> None:
        """Update `params` `(R, K, ...)` in place."""
        self._step += 1
        for index, (update, part, rates) in enumerate(self._parts):
            for key, param in params.items():
                slots = self._slots.setdefault((index, key), {})
                direction = update(grads[key][:, part], slots, self._step)
                shape = (-1,) + (1,) * (param.dim() - 2)
                param[:, part] -= rates.to(param).view(shape) * direction
