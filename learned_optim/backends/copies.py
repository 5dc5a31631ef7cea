"""Row-major memory for kernels that take pointers: the tensor's own where it can be, or a copy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def contiguous(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors, or row-major copies of those that are not.

    Enough for state, which is made here or copied from a checkpoint: its memory holds its numbers.
    """
    return [*map(Tensor.contiguous, tensors)]


def readable(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The same, of tensors whose memory may hold negated values, as the user's and autograd's may.

    The imaginary part of a conjugate is such a view (`torch.Tensor.is_neg`).
    """
    rows = contiguous(tensors)
    # To ask costs a small tensor less than to resolve what need not be.
    if any(map(Tensor.is_neg, rows)):
        return [*map(Tensor.resolve_neg, rows)]
    return rows


def write_back_(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    """Copy into place what was a copy."""
    for tensor, copy in zip(tensors, copies, strict=True):
        if copy is not tensor:
            tensor.copy_(copy)


def mark_written(params: Iterable[Tensor]) -> None:
    """Kernels write behind autograd's back; a later backward must notice."""
    for param in params:
        if not param.is_inference():
            torch.autograd.graph.increment_version(param)
