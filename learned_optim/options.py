"""What a param group may hold: options in their ranges, dense gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor


def check_options(options: dict[str, Any]) -> None:
    """Refuse options of a param group that are out of their range.

    Raises:
        ValueError: says which, its value and the range.
    """
    lr, decay, total = (options[key] for key in ("lr", "weight_decay", "total_steps"))
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"Tensor lr must be 1-element but has shape {tuple(lr.shape)}")
    if not _at_least_zero(lr):
        raise ValueError(f"lr must be >= 0 and finite but is {lr!r}; to climb, give maximize=True")
    if not _at_least_zero(decay):
        raise ValueError(f"weight_decay must be >= 0 and finite but is {decay!r}")
    if total is not None and not _is_count(total):
        raise ValueError(f"total_steps must be None or an integer >= 1 but is {total!r}")
    for key, allowed in (("maximize", (False, True)), ("fused", (None, False, True))):
        if not any(options[key] is value for value in allowed):
            raise ValueError(f"{key} must be one of {allowed} but is {options[key]!r}")


def _at_least_zero(value: object) -> bool:
    return isinstance(value, (Real, Tensor)) and 0.0 <= float(value) < math.inf


def _is_count(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return float(value) >= 1 and float(value).is_integer()


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
