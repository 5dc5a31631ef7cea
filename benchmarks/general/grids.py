"""Hand-written optimizers at many rates at once, with the schedules that practice gives them.

The arithmetic is torch.optim's, tested to be equal; `benchmarks.baselines` has the constant-rate
ones of the paper. Copies of the parameters lie along a leading dimension, one for each rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.baselines import BASELINES, Slots
from learned_optim.matrices import as_matrix, orthogonalize
from learned_optim.tasks import Params

Direction = Callable[[bool, Tensor, Slots, int], Tensor]

MUON_MOMENTUM = 0.95
MUON_QUINTICS = 5 * [(3.4445, -4.7750, 2.0315)]
MATCH_ADAM = 0.2  # root mean square of AdamW's steps, measured against which Muon's are scaled
NOT_HIDDEN = ("embedding", "position", "head.weight")


def may_be_hidden(name: str, shape: Sequence[int]) -> bool:
    """Whether it is a matrix or a kernel, and no embedding or head by name."""
    return len(shape) > 1 and name not in NOT_HIDDEN and min(as_matrix(tuple(shape))) > 1


def muon_takes(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """What Muon moves of a network: matrices and kernels but for embeddings and the output layer.

    That is the last weight, or a second table of embeddings. The rest is AdamW's (Jordan et al.,
    "Muon: an optimizer for hidden layers in neural networks", 2024).

    Args:
        shapes: of the parameters by name, in the order of the network.
    """
    weights = [name for name in shapes if name.endswith(".weight") or name == "context"]
    hidden = {name for name, shape in shapes.items() if may_be_hidden(name, shape)}
    return hidden - {*weights[-1:]}


def _adam(hidden: bool, grad: Tensor, slots: Slots, step: int) -> Tensor:
    return BASELINES["adam"].update(grad, slots, step)


def _momentum(hidden: bool, grad: Tensor, slots: Slots, step: int) -> Tensor:
    return BASELINES["momentum"].update(grad, slots, step)


def _muon(hidden: bool, grad: Tensor, slots: Slots, step: int) -> Tensor:
    """torch.optim.Muon with `adjust_lr_fn="match_rms_adamw"`, kernels flattened to out x rest."""
    if not hidden:
        return _adam(hidden, grad, slots, step)
    buffer = slots.setdefault("buffer", torch.zeros_like(grad))
    buffer.lerp_(grad, 1 - MUON_MOMENTUM)
    matrix = grad.lerp(buffer, MUON_MOMENTUM).flatten(3)
    scale = MATCH_ADAM * math.sqrt(max(matrix.shape[-2:]))
    return orthogonalize(matrix, MUON_QUINTICS).mul_(scale).view_as(grad)


@dataclass(frozen=True)
class Method:
    """An optimizer and the rates at which it is tried.

    Attributes:
        label: for tables.
        direction: `(hidden, grad, slots, step)` -> what is subtracted, times the rate; `hidden`:
            whether `muon_takes` it.
        rates: ascending.
        cosine: whether the rate falls to zero as a cosine, as CosineAnnealingLR has it.
        decay: decoupled weight decay, times the rate.
    """

    label: str
    direction: Direction
    rates: tuple[float, ...]
    cosine: bool
    decay: float

    def factor(self, step: int, steps: int) -> float:
        """On the rate of update number `step`, from 1."""
        return 0.5 * (1 + math.cos(math.pi * (step - 1) / steps)) if self.cosine else 1.0


_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
METHODS: dict[str, Method] = {
    "adam": Method("Adam, best rate", _adam, _RATES, cosine=False, decay=0.0),
    "adamw_cosine": Method("AdamW + cosine, best rate", _adam, _RATES, cosine=True, decay=0.01),
    "muon_cosine": Method("Muon + cosine, best rate", _muon, _RATES, cosine=True, decay=0.01),
    "momentum_cosine": Method(
        "SGD with momentum + cosine, best rate",
        _momentum,
        (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0),
        cosine=True,
        decay=0.0,
    ),
}


class GridStepper:
    """All rates of some methods side by side, on the same minibatches.

    Args:
        methods: name -> method, in the order of the copies.
        steps: length of the runs, for the schedules.
    """

    def __init__(self, methods: Mapping[str, Method], steps: int) -> None:
        self._steps, self._step, self.copies = steps, 0, 0
        self._parts: list[tuple[Method, slice, Tensor]] = []
        for method in methods.values():
            part = slice(self.copies, self.copies + len(method.rates))
            self._parts.append((method, part, torch.tensor(method.rates, dtype=torch.float64)))
            self.copies = part.stop
        self._slots: dict[tuple[int, str], Slots] = {}

    def step(self, params: Params, grads: Params) -> None:
        """Update `params` `(R, K, ...)` in place."""
        self._step += 1
        hidden = muon_takes({key: param.shape[2:] for key, param in params.items()})
        for index, (method, part, rates) in enumerate(self._parts):
            now = rates * method.factor(self._step, self._steps)
            for key, param in params.items():
                slots = self._slots.setdefault((index, key), {})
                grad = grads[key][:, part]
                direction = method.direction(key in hidden, grad, slots, self._step)
                rate = now.to(param).view(-1, *(1,) * (param.dim() - 2))
                moved = param[:, part]
                if method.decay:
                    moved.mul_(1 - rate * method.decay)
                moved.sub_(direction * rate)

    def show(self) -> None:
        """The parameters are what a user gets."""

    def hide(self) -> None:
        """Nothing to undo."""
