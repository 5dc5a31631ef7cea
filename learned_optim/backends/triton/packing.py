"""A rule's weights in the order in which the kernels read them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from learned_optim.rules import UpdateRule, Weights
from learned_optim.rules.default import Default
from learned_optim.rules.l2l import L2L

# What the kernels' activations are powers of 2 of: -x for the gates i, f and o, -2x for g.
FACTORS = (-math.log2(math.e),) * 3 + (-2 * math.log2(math.e),)
MULTIPLIED = 8  # units up to which a single layer is multiplied out without tensor cores
MOST = 32  # units


class Packed(NamedTuple):
    """Weights for a kernel.

    Attributes:
        columns: float32, flat. Layer after layer the biases and then a column for each input that
            is multiplied out, `(4, padded)` each; then the head: its rows of `padded`, its biases.
        matrices: float16, `(matrices, 2, 4, padded, padded)`: of each matrix that goes through
            tensor cores and each gate the transpose, as the sum of two halves.
    """

    columns: Tensor
    matrices: Tensor


def padded(hidden: int, products: bool) -> int:
    """Units with padding: a power of two, and what tensor cores take at least."""
    least = 16 if products else 1
    return max(least, 1 << (hidden - 1).bit_length())


def by_products(layers: int, hidden: int) -> bool:
    """Whether the units of `l2l` are multiplied by tensor cores."""
    return layers > 1 or hidden > MULTIPLIED


def pack(rule: UpdateRule, weights: Weights) -> Packed:
    """The weights of a rule that the kernels know; torch functions only.

    Raises:
        TypeError: for another rule.
    """
    if isinstance(rule, L2L):
        return _pack_l2l(rule, weights)
    if isinstance(rule, Default):
        return _pack_default(rule, weights)
    raise TypeError(f"the triton backend has no kernel for the rule {rule.name!r}")


def _pack_l2l(rule: L2L, weights: Weights) -> Packed:
    products = by_products(rule.layers, rule.hidden)
    size = padded(rule.hidden, products)
    columns, matrices = [], []
    for layer in range(rule.layers):
        inputs, hidden, bias = (weights[f"cell.{layer}.{key}"] for key in ("w_ih", "w_hh", "b"))
        columns.append(_columns(bias.unsqueeze(1), size))
        for matrix, multiplied in ((inputs, layer == 0), (hidden, not products)):
            if multiplied:
                columns.append(_columns(matrix, size))
            else:
                matrices.append(_halves(matrix, size))
    columns.append(_head(weights["head.w"], weights["head.b"], size))
    none = columns[0].new_zeros(0, dtype=torch.float16)
    return Packed(torch.cat(columns), torch.stack(matrices) if matrices else none)


def _pack_default(rule: Default, weights: Weights) -> Packed:
    none = next(iter(weights.values())).new_zeros(0)
    if not rule.hidden:
        return Packed(none, none)
    size = padded(rule.hidden, products=False)
    level = {key.removeprefix("coordinate."): value for key, value in weights.items()}
    columns = [_columns(level[key], size) for key in ("w_ih", "w_hh")]
    bias = _columns(level["b"].unsqueeze(1), size)
    head = _head(level["head.w"], level["head.b"], size)
    return Packed(torch.cat((bias, *columns, head)), none)


def _by_gate(matrix: Tensor) -> Tensor:
    """`(4H, F)` -> `(4, H, F)`, times `FACTORS`."""
    gates = matrix.view(4, matrix.shape[0] // 4, -1).unbind()
    return torch.stack([gate * factor for gate, factor in zip(gates, FACTORS, strict=True)])


def _columns(matrix: Tensor, size: int) -> Tensor:
    """`(4H, F)` -> each column by gate, flat `(F * 4 * size)`."""
    by_gate = _by_gate(matrix)
    return pad(by_gate.permute(2, 0, 1), (0, size - by_gate.shape[1])).reshape(-1)


def _halves(matrix: Tensor, size: int) -> Tensor:
    """`(4H, K)` -> `(2, 4, size, size)`: transposed, rounded, and what rounding took off."""
    by_gate = _by_gate(matrix).mT
    _, inputs, hidden = by_gate.shape
    whole = pad(by_gate, (0, size - hidden, 0, size - inputs))
    high = whole.half()
    return torch.stack((high, (whole - high.to(whole.dtype)).half()))


def _head(weight: Tensor, bias: Tensor, size: int) -> Tensor:
    """`(rows, H)` and `(rows,)`, flat."""
    return torch.cat((pad(weight, (0, size - weight.shape[1])).reshape(-1), bias))
