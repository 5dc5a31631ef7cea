"""Pictures for neural art: photographs and paintings from files, or a generated pattern.

`photograph(name)` reads `images/<name>.jpg` or `.png` in the folder named by the environment
variable `LEARNED_OPTIM_DATA`; "waves" and "stripes" are generated and need no file. Nothing is
downloaded.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks.datasets import DATA_VARIABLE, DataUnavailable

PHOTOGRAPHS = ("tubingen", "hoovertowernight", "golden_gate")
PAINTINGS = ("starry_night_crop", "the_scream", "shipwreck")
GENERATED = {"waves": 40.0, "stripes": 150.0}  # name -> largest frequency
PICTURES = (*PHOTOGRAPHS, *PAINTINGS, *GENERATED)

_SUFFIXES = (".jpg", ".png")
_SIDE = 96  # of the generated picture


def photograph(name: str) -> Tensor:
    """One of `PICTURES`, `(3, H, W)` in [-1, 1].

    Raises:
        ValueError: for an unknown name.
        DataUnavailable: if the file is not there or cannot be read.
    """
    if name not in PICTURES:
        raise ValueError(f"picture must be one of {PICTURES} but is {name!r}")
    return (
        _waves(GENERATED[name])
        if name in GENERATED
        else _read(name, os.environ.get(DATA_VARIABLE, ""))
    )


def square(picture: Tensor, size: int, generator: torch.Generator | None = None) -> Tensor:
    """A square part of a picture, `(3, H, W)` -> `(3, size, size)`.

    Args:
        picture: the whole.
        size: of the result.
        generator: draws side (half to all of the short side), place and reflection; without one
            it is the largest square, in the middle.
    """
    height, width = picture.shape[-2:]
    side, places, mirrored = min(height, width), torch.full((2,), 0.5), False
    if generator is not None:
        drawn = torch.rand(4, generator=generator, device=generator.device).cpu()
        side = max(1, round(side * (0.5 + 0.5 * drawn[0].item())))
        places, mirrored = drawn[1:3], bool(drawn[3] < 0.5)
    top, left = (
        round((length - side) * place)
        for length, place in zip((height, width), places.tolist(), strict=True)
    )
    part = picture[None, :, top : top + side, left : left + side]
    shrunk = functional.interpolate(part, (size, size), mode="bilinear", antialias=True)[0]
    return shrunk.flip(-1) if mirrored else shrunk


@functools.lru_cache(maxsize=8)
def _read(name: str, root: str) -> Tensor:
    paths = [Path(root) / "images" / f"{name}{suffix}" for suffix in _SUFFIXES]
    path = next((path for path in paths if root and path.is_file()), None)
    if path is None:
        raise DataUnavailable(
            f"images/{name}.jpg is not in the folder that {DATA_VARIABLE} names ({root!r}). Put a "
            f"picture of that name there and set the variable, or use one of {list(GENERATED)}."
        )
    try:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (ImportError, OSError) as error:
        raise DataUnavailable(
            f"{path} cannot be read ({error}). It takes pillow, from the extra "
            "'learned-optim[meta-training]', and an undamaged file."
        ) from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def _waves(fastest: float) -> Tensor:
    """Four waves a channel, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    places = torch.linspace(0, 1, _SIDE)
    y, x = torch.meshgrid(places, places, indexing="ij")
    speed = fastest * torch.rand(3, 4, 2, 1, 1, generator=generator)
    phase = 6 * torch.rand(3, 4, 1, 1, generator=generator)
    return torch.sin(speed[:, :, 0] * x + speed[:, :, 1] * y + phase).mean(1)
