"""The mirror image of a recurrent rule: what it would be if gradients had the other sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from learned_optim.rules.base import Weights

# Whether a feature stays (1) or turns its sign (-1) with the gradient, by `L2L.preprocess`.
FEATURES = {"log_sign": (1.0, -1.0), "none": (-1.0,)}


def mirrored_cells(
    weights: Mapping[str, Tensor], hidden: int, features: Sequence[float]
) -> Weights:
    """Cells and head that answer to the opposite gradient with the opposite step of these.

    Features that turn their sign are read with the opposite weight, and so is the output. On top of
    that the units change places in pairs, which alters nothing: but so a network can be its own
    mirror image without being blind to the sign.

    Args:
        weights: `cell.<layer>.<name>`, `head.w`, `head.b`, with any leading dimensions.
        hidden: units of a layer; of an odd number the last one has no partner.
        features: of the first layer, see `FEATURES`.
    """
    return {key: _mirror(key, value, hidden, features) for key, value in weights.items()}


def _mirror(key: str, value: Tensor, hidden: int, features: Sequence[float]) -> Tensor:
    if key == "head.b":
        return -value
    if key == "head.w":
        return -_exchange(value, -1, hidden)
    name = key.rsplit(".", 1)[-1]
    if name not in ("w_ih", "w_hh"):
        return _exchange(value, -1, hidden)
    rows = _exchange(value, -2, hidden)
    if name == "w_ih" and key.startswith("cell.0."):
        return rows * value.new_tensor(features)
    return _exchange(rows, -1, hidden)


def _exchange(value: Tensor, dim: int, hidden: int) -> Tensor:
    """Units k and k + hidden // 2 change places in each block of `hidden` along `dim`."""
    half = hidden // 2
    order = [*range(half, 2 * half), *range(half), *range(2 * half, hidden)]
    places = torch.tensor(order, device=value.device)
    blocks = torch.arange(0, value.shape[dim], hidden, device=value.device)
    return value.index_select(dim, (blocks[:, None] + places).flatten())
