"""The last pass over a step that is whole: part of it is taken, the rest is owed."""

from __future__ import annotations

from torch import Tensor

from learned_optim.kernels import native, structs
from learned_optim.kernels.checks import check_float32, storage_type, thread_count


def take_(
    param: Tensor,
    owed: Tensor,
    step: Tensor,
    *,
    share: float,
    due: float,
    lr: float = 1.0,
    keep: float = 1.0,
    threads: int | None = None,
) -> None:
    """`param <- keep * param + lr * taken`, where `taken` and the new `owed` are `deferral`'s.

    autograd does not notice that the parameter changes: the caller tells it
    (`increment_version`).

    Args:
        param: `(N,)`, contiguous, of one of `STORAGE`.
        owed: `(N,)`, float32, contiguous; in place.
        step: likewise; the whole step, finite.
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
    check_float32("owed", owed, (count,))
    check_float32("step", step, (count,))
    arguments = structs.TakeArguments(
        count=count,
        step=step.data_ptr(),
        param=param.data_ptr(),
        owed=owed.data_ptr(),
        lr=lr,
        keep=keep,
        share=share,
        due=due,
        param_type=storage_type("param", [param], [count]),
        threads=thread_count(threads),
    )
    native.call("learned_optim_take", arguments)
