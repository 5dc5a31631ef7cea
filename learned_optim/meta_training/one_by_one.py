"""`torch.func.vmap` for functions that it cannot batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """Call `function` for each entry of the first dimension, and stack what it returns.

    Args:
        function: of dictionaries of tensors; returns tensors, or dictionaries or tuples of them.
    """

    def batched(*arguments: dict[str, Tensor]) -> Any:  # noqa: ANN401
        count = next(len(tensor) for tensor in arguments[0].values())
        return _stacked(
            [
                function(*({key: tensor[i] for key, tensor in one.items()} for one in arguments))
                for i in range(count)
            ]
        )

    return batched


def _stacked(parts: list[Any]) -> Any:  # noqa: ANN401
    if isinstance(parts[0], Tensor):
        return torch.stack(parts)
    if isinstance(parts[0], dict):
        return {key: _stacked([part[key] for part in parts]) for key in parts[0]}
    return tuple(_stacked([*column]) for column in zip(*parts, strict=True))
