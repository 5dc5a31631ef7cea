"""The mirror image of a recurrent rule: what it would be if gradients had the other sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from learned_optim.rules.base import Weights

# Whether a feature stays (1) or turns its sign (-1) with the gradient, by `L2L.preprocess`.
FEATURES = {"log_sign": (1.0, -1.0), "none": (-1.0,)}


def mirrored_cells(
    weights: Mapping[str, Tensor], hidden: int, features: Sequence[float], *, exchange: bool = True
) -> Weights:
    """Cells and head that answer to the opposite gradient with the opposite step of these.

    Features that turn their sign are read with the opposite weight, and so is the output. On top of
    that the units change places in pairs, which alters nothing: but so a network can be its own
    mirror image without being blind to the sign.

    Args:
        weights: `cell.<layer>.<name>`, `head.w`, `head.b`, with any leading dimensions.
        hidden: units of a layer; of an odd number the last one has no partner.
        features: of the first layer, see `FEATURES`.
        exchange: whether units change places.
    """
    images = {}
    for key, value in weights.items():
        dims, features_seen = _units(key)
        image = value
        for dim in dims if exchange else ():
            image = _exchange(image, dim, hidden)
        if features_seen:
            image = image * value.new_tensor(features)
        images[key] = -image if key.startswith("head") else image
    return images


def odd_pair(weights: Mapping[str, Tensor], hidden: int, features: Sequence[float]) -> Weights:
    """The odd part of a rule, (step(g) - step(-g)) / 2, as cells of twice as many units.

    The rule and its mirror image side by side, without leading dimensions.

    Args:
        weights: as `mirrored_cells` has them.
        hidden: units of a layer; the result has twice as many.
        features: of the first layer, see `FEATURES`.
    """
    images = mirrored_cells(weights, hidden, features, exchange=False)
    return {key: _beside(key, value, images[key], hidden) for key, value in weights.items()}


def _units(key: str) -> tuple[tuple[int, ...], bool]:
    """The dimensions of a weight that count units, and whether its columns are the features."""
    name = key.rsplit(".", 1)[-1]
    if name == "w_ih" and key.startswith("cell.0."):
        return (-2,), True
    if name in ("w_ih", "w_hh"):
        return (-2, -1), False
    return ((), False) if key == "head.b" else ((-1,), False)


def _exchange(value: Tensor, dim: int, hidden: int) -> Tensor:
    """Units k and k + hidden // 2 change places in each block of `hidden` along `dim`."""
    half = hidden // 2
    order = [*range(half, 2 * half), *range(half), *range(2 * half, hidden)]
    places = torch.tensor(order, device=value.device)
    blocks = torch.arange(0, value.shape[dim], hidden, device=value.device)
    return value.index_select(dim, (blocks[:, None] + places).flatten())


def _beside(key: str, value: Tensor, image: Tensor, hidden: int) -> Tensor:
    """One weight of both: units that do not see each other, an output that is the mean."""
    if key == "head.b":
        return (value + image) / 2
    if key == "head.w":
        return torch.cat((value, image), -1) / 2
    dims, _ = _units(key)
    blocks = [each.unflatten(0, (-1, hidden)) for each in (value, image)]
    if len(dims) == 2:  # from units to units
        nothing = torch.zeros_like(blocks[0])
        blocks = [torch.cat((blocks[0], nothing), -1), torch.cat((nothing, blocks[1]), -1)]
    return torch.cat(blocks, 1).flatten(0, 1)
