"""The launches as operators that torch.compile calls without looking inside.

Tensors and plain values in, as `launch` has them; `triton` is imported at the first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Tables of addresses are kept from call to call, which a pool of CUDA graphs would not bear.
_TAGS: dict[str, Any] = (
    {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}
)
_GROUP = "Tensor? finite, float lr, Tensor? lr_tensor, float decay, bool maximize"


def _survey(
    grads: Sequence[Tensor],
    plains: Sequence[Tensor],
    params: Sequence[Tensor],
    moments: Sequence[Tensor],
    maximize: bool,
) -> Tensor:
    from learned_optim.backends.triton import launch

    return launch.survey(grads, plains, params, moments, maximize)


survey = torch.library.custom_op(
    "learned_optim::triton_survey",
    _survey,
    **_TAGS,
    mutates_args=(),
    schema=(
        "(Tensor[] grads, Tensor[] plains, Tensor[] params, Tensor[] moments, bool maximize)"
        " -> Tensor"
    ),
)


@survey.register_fake
def _(
    grads: Sequence[Tensor],
    plains: Sequence[Tensor],
    params: Sequence[Tensor],
    moments: Sequence[Tensor],
    maximize: bool,
) -> Tensor:
    from learned_optim.rules.default import SUMS

    width = 1 + (len(SUMS) if moments else 0)
    return grads[0].new_empty((len(grads), width), dtype=torch.float32)


def _l2l(
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    cells: Sequence[Tensor],
    columns: Tensor,
    matrices: Tensor,
    finite: Tensor | None,
    lr: float,
    lr_tensor: Tensor | None,
    decay: float,
    maximize: bool,
    layers: int,
    hidden: int,
    p: float | None,
    scale: float,
) -> None:
    from learned_optim.backends.triton import launch
    from learned_optim.backends.triton.constants import L2LSizes

    group = launch.Group(finite, lr, lr_tensor, decay, maximize)
    sizes = L2LSizes(layers, hidden, p, scale)
    launch.l2l_(grads, params, cells, columns, matrices, group, sizes)


l2l_ = torch.library.custom_op(
    "learned_optim::triton_l2l_",
    _l2l,
    **_TAGS,
    mutates_args=("params", "cells"),
    schema=(
        "(Tensor[] grads, Tensor(a!)[] params, Tensor(b!)[] cells, Tensor columns, "
        f"Tensor matrices, {_GROUP}, int layers, int hidden, float? p, float scale) -> ()"
    ),
)


def _default(
    grads: Sequence[Tensor],
    params: Sequence[Tensor],
    moments: Sequence[Tensor],
    cells: Sequence[Tensor],
    steps: Tensor | None,
    columns: Tensor,
    signals: Tensor,
    finite: Tensor | None,
    lr: float,
    lr_tensor: Tensor | None,
    decay: float,
    maximize: bool,
) -> None:
    from learned_optim.backends.triton.default_step import DefaultStep
    from learned_optim.backends.triton.launch import Group

    group = Group(finite, lr, lr_tensor, decay, maximize)
    late = () if steps is None else (0,)
    step = DefaultStep(grads, params, moments, cells, columns, signals, group, late)
    step.move_(None if steps is None else 0, steps)
    step.write_back_()


default_ = torch.library.custom_op(
    "learned_optim::triton_default_",
    _default,
    **_TAGS,
    mutates_args=("params", "moments", "cells", "steps"),
    schema=(
        "(Tensor[] grads, Tensor(a!)[] params, Tensor(b!)[] moments, Tensor(c!)[] cells, "
        f"Tensor(d!)? steps, Tensor columns, Tensor signals, {_GROUP}) -> ()"
    ),
)
