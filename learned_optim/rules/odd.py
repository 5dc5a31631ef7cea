"""Rules that answer to the opposite gradient with the opposite step.

A recurrent network has no reason to be odd, and then its answer to a zero gradient is not zero:
inputs that are never negative, pixels for one, make the weights of a unit drift the same way, and
over an episode the drifts add up. It is odd if its units come in pairs that are each other's mirror
image: when the gradient turns its sign, each unit of a pair does what the other did. The weights
that make it so are a linear subspace, half as large, of those of the unrestricted rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from learned_optim.rules.base import Weights

# How the features answer to the opposite gradient, by `preprocess`: kept (1) or negated (-1).
FEATURES = {"log_sign": (1.0, -1.0), "none": (-1.0,)}


def mirrored(weights: Mapping[str, Tensor], hidden: int, features: Sequence[float]) -> Weights:
    """The weights of `L2L` that answer as these would to the opposite gradient, negated.

    Unit k of each layer takes the place of unit k + hidden / 2 and the reverse.

    Args:
        weights: named as `L2L.weight_shapes` has it, with any leading dimensions.
        hidden: units of a layer, even.
        features: see `FEATURES`.
    """
    return {key: _mirror(key, value, hidden, features) for key, value in weights.items()}


def _mirror(key: str, value: Tensor, hidden: int, features: Sequence[float]) -> Tensor:
    if key == "head.b":
        return -value
    if key == "head.w":
        return -_swap(value, -1, hidden)
    name = key.rsplit(".", 1)[-1]
    if name not in ("w_ih", "w_hh"):
        return _swap(value, -1, hidden)
    rows = _swap(value, -2, hidden)
    if name == "w_hh" or not key.startswith("cell.0."):
        return _swap(rows, -1, hidden)
    return rows * value.new_tensor(features)


def _swap(value: Tensor, dim: int, hidden: int) -> Tensor:
    """Exchange the halves of every `hidden` entries along `dim`, which is counted from the end."""
    halves = value.unflatten(dim, (-1, 2, hidden // 2))
    return halves.flip(dim - 1).flatten(dim - 2, dim)
