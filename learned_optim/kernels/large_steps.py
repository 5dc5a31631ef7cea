"""Passes over the whole step of a large matrix, before and behind its orthogonalisation."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from learned_optim.kernels import native, structs
from learned_optim.kernels.checks import check_float32, storage_type, thread_count

KINDS = (torch.float32, torch.bfloat16)  # that matrices are multiplied in


def normalize(
    step: Tensor, dtype: torch.dtype, *, threads: int | None = None
) -> tuple[Tensor, float]:
    """A step divided by its Frobenius norm, and that norm.

    Args:
        step: `(N,)`, float32, contiguous. Zero stays zero; one that is not finite becomes NaN
            somewhere.
        dtype: of what is returned, one of `KINDS`.
        threads: torch's number by default; the result does not depend on it.

    Raises:
        ValueError: for a wrong dtype, device or layout.
        native.Unavailable: where the kernels are not built.
    """
    check_float32("step", step, (step.numel(),))
    if dtype not in KINDS:
        raise ValueError(f"dtype must be one of {[*KINDS]} but is {dtype}")
    short, norm = torch.empty(step.numel(), dtype=dtype, device="cpu"), ctypes.c_double()
    arguments = structs.NormalizeArguments(
        count=step.numel(),
        numbers=step.data_ptr(),
        to=short.data_ptr(),
        norm=ctypes.addressof(norm),
        type=storage_type("step", [short], [step.numel()]),
        threads=thread_count(threads),
    )
    native.call("learned_optim_normalize", arguments)
    return short, norm.value


def finish_(
    step: Tensor,
    straight: Tensor,
    param: Tensor,
    owed: Tensor,
    *,
    blend: float,
    size: float,
    share: float,
    due: float,
    lr: float = 1.0,
    keep: float = 1.0,
    threads: int | None = None,
) -> None:
    """`step + blend * (size * straight - step)`, taken as `take_` does.

    Where a number of it is not finite the parameter stays where it is. autograd does not notice
    that the parameter changes: the caller tells it (`increment_version`).

    Args:
        step: `(N,)`, float32, contiguous.
        straight: `(N,)`, contiguous, of one of `KINDS`.
        param: `(N,)`, contiguous, of one of `STORAGE`.
        owed: as `step`; in place.
        blend: share of what is straight.
        size: factor on that.
        share: of the step, what waits.
        due: of what is owed, what falls due.
        lr: factor on what is taken.
        keep: factor on the parameter.
        threads: torch's number by default; the result does not depend on it.

    Raises:
        ValueError: for a wrong size, dtype, device or layout.
        native.Unavailable: where the kernels are not built.
    """
    count = param.numel()
    check_float32("step", step, (count,))
    check_float32("owed", owed, (count,))
    if straight.dtype not in KINDS:
        raise ValueError(f"straight must be one of {[*KINDS]} but is {straight.dtype}")
    arguments = structs.FinishArguments(
        count=count,
        step=step.data_ptr(),
        straight=straight.data_ptr(),
        param=param.data_ptr(),
        owed=owed.data_ptr(),
        blend=blend,
        size=size,
        share=share,
        due=due,
        lr=lr,
        keep=keep,
        straight_type=storage_type("straight", [straight], [count]),
        param_type=storage_type("param", [param], [count]),
        threads=thread_count(threads),
    )
    native.call("learned_optim_finish", arguments)
