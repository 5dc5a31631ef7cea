"""Pre-norm transformer blocks, for the language model and the image classifier."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks import nets
from learned_optim.tasks.axes import choices
from learned_optim.tasks.base import Params, TaskFamily

_STD = 0.02


def check_heads(family: TaskFamily) -> None:
    """Refuse axes `width` and `heads` that do not divide.

    Raises:
        ValueError: naming the two values.
    """
    for width in choices(family, "width"):
        for heads in choices(family, "heads"):
            if width % heads:
                raise ValueError(f"width must be a multiple of heads: {width} is not of {heads}")


def block_params(generator: torch.Generator, name: str, width: int, depth: int) -> Params:
    """One of `depth` blocks: attention and an MLP of four times the width.

    As GPT-2: weights N(0, 0.02^2), those that write to the residual stream divided by
    sqrt(2 depth), biases zero. Radford et al., "Language models are unsupervised multitask
    learners", 2019, section 2.3.

    Parameters `<name>.norm0|norm1.weight|bias`, `<name>.attention.weight` `(3 width, width)`,
    `<name>.mix.weight` `(width, width)`, `<name>.expand.weight` `(4 width, width)`,
    `<name>.contract.weight` `(width, 4 width)`, each with its bias.
    """
    residual = _STD / math.sqrt(2 * depth)
    params: Params = {}
    for part, outputs, inputs, std in (
        ("attention", 3 * width, width, _STD),
        ("mix", width, width, residual),
        ("expand", 4 * width, width, _STD),
        ("contract", width, 4 * width, residual),
    ):
        params[f"{name}.{part}.weight"] = nets.normal(generator, (outputs, inputs), std)
        params[f"{name}.{part}.bias"] = torch.zeros(outputs, device=generator.device)
    params |= nets.norm_params(f"{name}.norm0", width, generator.device)
    return params | nets.norm_params(f"{name}.norm1", width, generator.device)


def block(params: Params, name: str, x: Tensor, heads: int, *, causal: bool) -> Tensor:
    """`(B, T, width)` -> `(B, T, width)`."""
    x = x + _attend(params, name, nets.layer_norm(params, f"{name}.norm0", x), heads, causal)
    hidden = nets.dense(params, f"{name}.expand", nets.layer_norm(params, f"{name}.norm1", x))
    return x + nets.dense(params, f"{name}.contract", functional.gelu(hidden))


def _attend(params: Params, name: str, x: Tensor, heads: int, causal: bool) -> Tensor:
    # Written out: the fused attention has no rule for batches of gradients.
    batch, length, width = x.shape
    joint = nets.dense(params, f"{name}.attention", x)
    query, key, value = joint.view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    scores = query @ key.transpose(-2, -1) / math.sqrt(width // heads)
    if causal:
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(mask, -torch.inf)
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width)
    return nets.dense(params, f"{name}.mix", mixed)
