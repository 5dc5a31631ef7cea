"""What the kernels are compiled for: sizes, dtypes, and how they are cut."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton.language as tl

from learned_optim.backends.triton.packing import by_products, padded
from learned_optim.rules import default

KINDS: dict[torch.dtype, Any] = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
SURVEY_BLOCK, SURVEY_TILE = 4096, 1024
ADD_UP_TILE = 512


class Shape(NamedTuple):
    """How a kernel is cut: coordinates a program moves, and its warps."""

    block: int
    warps: int

    @property
    def options(self) -> dict[str, Any]:
        """For a launch; without contraction a product and a sum are two instructions."""
        return {"BLOCK": self.block, "num_warps": self.warps, "enable_fp_fusion": True}


MULTIPLIED_OUT = Shape(256, 4)
BY_PRODUCTS = Shape(64, 4)


class L2LSizes(NamedTuple):
    """The config of `l2l` as its kernel takes it: `p` is None for raw gradients."""

    layers: int
    hidden: int
    p: float | None
    scale: float


def l2l_constants(sizes: L2LSizes) -> dict[str, Any]:
    """What its kernel is compiled for, besides dtypes, alignment and the group's flags."""
    products = by_products(sizes.layers, sizes.hidden)
    return {
        "LAYERS": sizes.layers,
        "HIDDEN": sizes.hidden,
        "PADDED": padded(sizes.hidden, products),
        "LOG_SIGN": sizes.p is not None,
        "PRODUCTS": products,
        **(BY_PRODUCTS if products else MULTIPLIED_OUT).options,
    }


def default_constants(hidden: int) -> dict[str, Any]:
    """The same for the kernel of `default`."""
    size = padded(max(hidden, 1), products=False)
    return {"HIDDEN": hidden, "PADDED": size, **MULTIPLIED_OUT.options}


def survey_constants(moments: bool) -> dict[str, Any]:
    """The same for the survey, which takes sums where there are moments."""
    width = 1 + (len(default.SUMS) if moments else 0)
    cut = {"BLOCK": SURVEY_BLOCK, "TILE": SURVEY_TILE, "enable_fp_fusion": True}
    return {"MOMENTS": tl.float32, "SUMS": moments, "COLUMNS": width, **cut}


def add_up_constants(width: int) -> dict[str, Any]:
    """The same for the sum over blocks."""
    cut = {"TILE": ADD_UP_TILE, "enable_fp_fusion": True}
    return {"COLUMNS": width, "PADDED": 1 << (width - 1).bit_length(), **cut}
