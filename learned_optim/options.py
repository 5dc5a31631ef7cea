"""What a param group may hold: options in their ranges, dense gradients, shapes that stay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

# The kernels take rates as float32, in which more than this is infinite.
_LARGEST = torch.finfo(torch.float32).max


def check_options(options: dict[str, Any]) -> None:
    """Refuse options of a param group that are out of their range.

    Raises:
        ValueError: says which, its value and the range.
    """
    lr, decay, total = (options[key] for key in ("lr", "weight_decay", "total_steps"))
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"Tensor lr must be 1-element but has shape {tuple(lr.shape)}")
    if not 0.0 <= _number(lr) < math.inf:
        raise ValueError(f"lr must be >= 0 and finite but is {lr!r}; to climb, give maximize=True")
    if not 0.0 <= _number(decay) < math.inf:
        raise ValueError(f"weight_decay must be >= 0 and finite but is {decay!r}")
    for key, value in (("lr", lr), ("weight_decay", decay)):
        if _number(value) > _LARGEST:
            raise ValueError(
                f"{key} must be at most {_LARGEST:.3g}, float32's largest, but is {value!r}"
            )
    if total is not None and not _is_count(total):
        raise ValueError(
            f"total_steps must be None or an integer >= 1 and < 2**63 but is {total!r}"
        )
    for key, allowed in (("maximize", (False, True)), ("fused", (None, False, True))):
        if not any(options[key] is value for value in allowed):
            raise ValueError(f"{key} must be one of {allowed} but is {options[key]!r}")


def _number(value: object) -> Any:  # noqa: ANN401 - integers may be too large for a float
    """A real number, or that of a tensor; of anything else NaN, which is in no range."""
    number = value.item() if isinstance(value, Tensor) else value
    return number if isinstance(number, Real) else math.nan


def _is_count(value: object) -> bool:
    if isinstance(value, (bool, Tensor)):
        return False
    return 1 <= _number(value) < 2**63 and _number(value) % 1 == 0


def check_dense(groups: Iterable[Mapping[str, Any]]) -> None:
    """Refuse sparse gradients.

    Raises:
        RuntimeError: naming the parameter by its shape.
    """
    for group in groups:
        for param in group["params"]:
            grad = param.grad
            if grad is not None and grad.layout != torch.strided:
                raise RuntimeError(
                    "LearnedOptimizer does not support sparse gradients (parameter of shape "
                    f"{tuple(param.shape)}, layout {grad.layout}): every coordinate has "
                    "state that moves at every step. Use sparse=False in the embedding"
                )


def check_shape(shape: Sequence[int], state: Mapping[str, Tensor], keys: Iterable[str]) -> None:
    """Refuse a parameter whose shape has changed since its state was made.

    Args:
        shape: of the whole parameter, complex numbers as pairs.
        state: the parameter's.
        keys: entries `(rows, *shape)` of it.

    Raises:
        RuntimeError: naming both shapes.
    """
    for key in keys:
        before = tuple(state[key].shape[1:])
        if before != tuple(shape):
            raise RuntimeError(
                f"a parameter of shape {tuple(shape)} had shape {before} when its state was made: "
                "coordinates would go on with the state of others. After a change of shape begin "
                "its state anew by optimizer.state.pop(parameter), or make a new optimizer"
            )
