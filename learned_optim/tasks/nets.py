"""Layers and initialisations shared by the task families: pure functions of named tensors.

Parameters are named as torch.nn names them: `<layer>.weight` `(out, in, ...)`, `<layer>.bias`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from learned_optim.tasks.base import Params

ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "elu": functional.elu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}
ACTIVATIONS = tuple(ACTIVATION_FUNCTIONS)

SCHEMES = ("he", "glorot", "lecun", "torch")


def weight(
    generator: torch.Generator, shape: Sequence[int], scheme: str = "he", gain: float = 1.0
) -> Tensor:
    """A weight `(out, in, ...)`, times `gain`.

    - "he": N(0, 2 / fan_in). He et al., "Delving deep into rectifiers", 2015, section 2.2.
    - "glorot": U(-a, a), a^2 = 6 / (fan_in + fan_out). Glorot and Bengio, 2010, equation 16.
    - "lecun": N(0, 1 / fan_in). LeCun et al., "Efficient backprop", 1998, section 4.6.
    - "torch": U(-a, a), a^2 = 1 / fan_in, the default of torch.nn.Linear and Conv2d.
    """
    receptive = math.prod(shape[2:])
    fan_in, fan_out = shape[1] * receptive, shape[0] * receptive
    if scheme in ("he", "lecun"):
        std = math.sqrt((2.0 if scheme == "he" else 1.0) / fan_in)
        return normal(generator, shape, gain * std)
    bound = math.sqrt(6.0 / (fan_in + fan_out) if scheme == "glorot" else 1.0 / fan_in)
    return uniform(generator, shape, gain * bound)


def normal(generator: torch.Generator, shape: Sequence[int], std: float = 1.0) -> Tensor:
    """N(0, std^2), iid."""
    return torch.randn(tuple(shape), generator=generator, device=generator.device).mul_(std)


def uniform(generator: torch.Generator, shape: Sequence[int], bound: float = 1.0) -> Tensor:
    """U(-bound, bound), iid."""
    drawn = torch.rand(tuple(shape), generator=generator, device=generator.device)
    return drawn.mul_(2.0 * bound).sub_(bound)


def integers(generator: torch.Generator, high: int, count: int) -> Tensor:
    """`(count,)` int64, uniform over 0 .. high - 1."""
    return torch.randint(high, (count,), generator=generator, device=generator.device)


def rotation(generator: torch.Generator, dim: int) -> Tensor:
    """An orthogonal `(dim, dim)` matrix: the Q of a Gaussian matrix."""
    return torch.linalg.qr(normal(generator, (dim, dim)))[0]


def dense_params(
    generator: torch.Generator,
    name: str,
    fan_in: int,
    fan_out: int,
    scheme: str = "he",
    gain: float = 1.0,
) -> Params:
    """A dense layer: weight `(fan_out, fan_in)` as `weight` draws it, bias zero."""
    return {
        f"{name}.weight": weight(generator, (fan_out, fan_in), scheme, gain),
        f"{name}.bias": torch.zeros(fan_out, device=generator.device),
    }


def dense(params: Params, name: str, x: Tensor) -> Tensor:
    """`(..., in)` -> `(..., out)`."""
    return functional.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def conv_params(
    generator: torch.Generator,
    name: str,
    channels: int,
    outputs: int,
    scheme: str = "he",
    gain: float = 1.0,
    *,
    size: int = 3,
    bias: bool = True,
) -> Params:
    """A convolution: weight `(outputs, channels, size, size)`, bias zero if any."""
    params = {f"{name}.weight": weight(generator, (outputs, channels, size, size), scheme, gain)}
    if bias:
        params[f"{name}.bias"] = torch.zeros(outputs, device=generator.device)
    return params


def conv(params: Params, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """`(B, C, H, W)` -> `(B, out, ceil(H / stride), ceil(W / stride))`, padded with zeros."""
    kernel = params[f"{name}.weight"]
    padding = kernel.shape[-1] // 2
    return functional.conv2d(x, kernel, params.get(f"{name}.bias"), stride, padding)


def centred(pixels: Tensor) -> Tensor:
    """Pixels from [0, 1] to [-1, 1], as is usual for convolutional nets."""
    return 2.0 * pixels - 1.0


def norm_params(name: str, size: int, device: torch.device | str = "cpu") -> Params:
    """Scale one and shift zero, `(size,)` each."""
    return {
        f"{name}.weight": torch.ones(size, device=device),
        f"{name}.bias": torch.zeros(size, device=device),
    }


def layer_norm(params: Params, name: str, x: Tensor) -> Tensor:
    """Layer normalisation over the last dimension."""
    scale, shift = params[f"{name}.weight"], params[f"{name}.bias"]
    return functional.layer_norm(x, scale.shape, scale, shift)


def mlp_params(
    generator: torch.Generator,
    sizes: Sequence[int],
    scheme: str = "he",
    gain: float = 1.0,
    *,
    norm: bool = False,
    prefix: str = "layer",
) -> Params:
    """Dense layers `<prefix><i>` between consecutive `sizes`; `norm` adds `<prefix><i>.norm`."""
    params: Params = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        params |= dense_params(generator, f"{prefix}{i}", fan_in, fan_out, scheme, gain)
        if norm and i < len(sizes) - 2:
            params |= norm_params(f"{prefix}{i}.norm", fan_out, generator.device)
    return params


def mlp(
    params: Params,
    x: Tensor,
    layers: int,
    activation: str,
    *,
    norm: bool = False,
    prefix: str = "layer",
) -> Tensor:
    """`layers` dense layers; normalisation, if any, and the activation after all but the last."""
    function = ACTIVATION_FUNCTIONS[activation]
    for i in range(layers - 1):
        x = dense(params, f"{prefix}{i}", x)
        if norm:
            x = layer_norm(params, f"{prefix}{i}.norm", x)
        x = function(x)
    return dense(params, f"{prefix}{layers - 1}", x)


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """`(...)` int64 -> `(..., classes)`; unlike torch's, without a look at the values."""
    return (labels[..., None] == torch.arange(classes, device=labels.device)).to(dtype)


def embed(table: Tensor, tokens: Tensor) -> Tensor:
    """Rows of `table` `(V, W)`, `(*tokens.shape, W)`.

    As a product with one-hot vectors: the gradient of a look-up does not batch, and the alphabets
    here are small.
    """
    return one_hot(tokens, table.shape[0], table.dtype) @ table


CLASSIFICATION_LOSSES = ("cross_entropy", "squared_error")


def classification_loss(logits: Tensor, labels: Tensor, loss: str = "cross_entropy") -> Tensor:
    """Mean over examples of the cross entropy, or of the squared distance to the one-hot label.

    Args:
        logits: `(B, classes)`.
        labels: `(B,)` int64.
        loss: one of `CLASSIFICATION_LOSSES`.
    """
    if loss == "cross_entropy":
        return functional.cross_entropy(logits, labels)
    target = one_hot(labels, logits.shape[-1], logits.dtype)
    return (logits - target).square().sum(-1).mean()
