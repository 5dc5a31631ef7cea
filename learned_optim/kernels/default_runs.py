"""The coordinates of the rule `default` in meta-training: many runs in one call.

P runs, each under a set of weights of its own, and each of N coordinates, which are those of T
tensors side by side. What happens once a tensor stays with the caller (`rules.default.control`):
`default_sums` comes before it, `default_step_` after.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learned_optim.kernels import native
from learned_optim.kernels.checks import MAX_HIDDEN, check_float32, thread_count

SUMS = 5  # numbers of `rules.default.SUMS`
SIGNALS = 11  # of `rules.default.SIGNALS`
INPUTS, BENDS = 6, 3


def default_weight_count(hidden: int) -> int:
    """Length of the flat weights of the coordinates' LSTM and its head: see `default_step_`."""
    return (4 * (INPUTS + hidden + 1) + BENDS) * hidden + BENDS if hidden else 0


def default_sums(
    grads: Tensor,
    params: Tensor,
    moments: Tensor,
    sizes: Sequence[int],
    *,
    threads: int | None = None,
) -> Tensor:
    """`rules.default.Default.summarize` of every tensor.

    Added up in float32 over at most 128 numbers a lane, then in float64 in a fixed order.

    Args:
        grads: `(P, N)`.
        params: `(P, N)`.
        moments: `(P, 2, N)`: m and v.
        sizes: coordinates of each of the T tensors; their sum is N.
        threads: torch's number by default; the result does not depend on it.

    Returns:
        `(P, 5, T)`.

    Raises:
        ValueError: for a wrong shape, dtype, device, layout or number.
        native.Unavailable: where the kernels are not built.
    """
    runs, coordinates = _check(grads, params, moments, sizes)
    survey = grads.new_empty((runs, len(sizes), 1 + SUMS))
    sizes_array = _int64(sizes)
    arguments = native.DefaultRunsArguments(
        rules=runs,
        tensors=len(sizes),
        coordinates=coordinates,
        sizes=sizes_array.data_ptr(),
        grads=grads.data_ptr(),
        params=params.data_ptr(),
        moments=moments.data_ptr(),
        survey=survey.data_ptr(),
        threads=thread_count(threads),
    )
    native.call("learned_optim_default_runs_survey", arguments)
    return survey[..., 1:].mT


def default_step_(
    grads: Tensor,
    params: Tensor,
    moments: Tensor,
    cell: Tensor | None,
    sizes: Sequence[int],
    signals: Tensor,
    weights: Tensor,
    *,
    hidden: int,
    threads: int | None = None,
) -> Tensor:
    """`rules.default.Default.update` of every coordinate; `moments` and `cell` in place.

    Args:
        grads: `(P, N)`.
        params: `(P, N)`.
        moments: `(P, 2, N)`: m and v, overwritten.
        cell: `(P, 2 * hidden, N)`: h then c, overwritten; None where `hidden` is 0.
        sizes: coordinates of each of the T tensors; their sum is N.
        signals: `(P, M, T)`, what `control` gave; M and order as in `rules.default.SIGNALS`.
        weights: `(P, default_weight_count(hidden))`: `w_ih (4H, 6)`, `w_hh (4H, H)`, `b (4H)` with
            the gates in the order i, f, o, g, the head `(3, H)` and its bias `(3)`.
        hidden: H; 0 without the LSTM.
        threads: torch's number by default; the result does not depend on it.

    Returns:
        The steps, `(P, N)`, before the matrix stage.

    Raises:
        ValueError: for a wrong shape, dtype, device, layout or number.
        native.Unavailable: where the kernels are not built.
    """
    runs, coordinates = _check(grads, params, moments, sizes)
    if not 0 <= hidden <= MAX_HIDDEN:
        raise ValueError(f"hidden must be in [0, {MAX_HIDDEN}] but is {hidden}")
    if (cell is None) != (hidden == 0):
        raise ValueError(f"cell must be given where hidden > 0 and only there; hidden is {hidden}")
    if cell is not None:
        check_float32("cell", cell, (runs, 2 * hidden, coordinates))
    check_float32("signals", signals, (runs, SIGNALS, len(sizes)))
    check_float32("weights", weights, (runs, default_weight_count(hidden)))
    steps, sizes_array = torch.empty_like(grads), _int64(sizes)
    arguments = native.DefaultRunsArguments(
        rules=runs,
        tensors=len(sizes),
        coordinates=coordinates,
        sizes=sizes_array.data_ptr(),
        weights=weights.data_ptr(),
        signals=signals.data_ptr(),
        grads=grads.data_ptr(),
        params=params.data_ptr(),
        moments=moments.data_ptr(),
        cell=None if cell is None else cell.data_ptr(),
        steps=steps.data_ptr(),
        hidden=hidden,
        threads=thread_count(threads),
    )
    native.call("learned_optim_default_runs_update", arguments)
    return steps


def _check(grads: Tensor, params: Tensor, moments: Tensor, sizes: Sequence[int]) -> tuple[int, int]:
    """P and N."""
    if grads.dim() != 2:
        raise ValueError(f"grads must be (P, N) but has {tuple(grads.shape)}")
    runs, coordinates = grads.shape
    check_float32("grads", grads, (runs, coordinates))
    check_float32("params", params, (runs, coordinates))
    check_float32("moments", moments, (runs, 2, coordinates))
    if sum(sizes) != coordinates or any(size < 0 for size in sizes):
        raise ValueError(f"sizes must add up to {coordinates} but are {list(sizes)}")
    return runs, coordinates


def _int64(sizes: Sequence[int]) -> Tensor:
    return torch.tensor(sizes, dtype=torch.int64)
