"""An optimizer's step of the rule `default`, but for its matrix stage, on many tensors in one call.

`DefaultTensors.survey` comes first, then `default_control_`, then `DefaultTensors.update_`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from learned_optim.kernels import native, structs
from learned_optim.kernels.checks import (
    check_all_float32,
    check_float32,
    storage_type,
    thread_count,
)
from learned_optim.kernels.default_runs import (
    ADVICE,
    HAND,
    MOMENTS,
    SIGNALS,
    SUMS,
    TELLS,
    default_weight_count,
    level_count,
)


class DefaultTensors:
    """T tensors of an optimizer, checked once for both passes of a step.

    Args:
        params: any shapes, contiguous, one dtype of `STORAGE` for all.
        grads: as `params`, as the rule sees them; their dtype may be another.
        moments: `(3, *param.shape)` each, float32: m, v and what is owed.
        cells: `(2 * hidden, *param.shape)` each, a third dtype; None where `hidden` is 0.
        hidden: H, units of a coordinate's LSTM.
        plains: as `grads`, in no basis; None: those are.
        maximize: negate the gradients.
        threads: torch's number by default; no result depends on it.

    Raises:
        ValueError: for a wrong size, dtype, device or layout.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        moments: Sequence[Tensor],
        cells: Sequence[Tensor] | None,
        *,
        hidden: int,
        plains: Sequence[Tensor] | None = None,
        maximize: bool = False,
        threads: int | None = None,
    ) -> None:
        if hidden and cells is None:
            raise ValueError(f"cells must be given where hidden > 0, which is {hidden}")
        cells = cells if hidden and cells is not None else []
        self._hidden, self._threads = hidden, thread_count(threads)
        self._counts = counts = [param.numel() for param in params]
        # Memory that is pointed to must live.
        self._held = columns = (grads, plains or grads, params, moments, cells)
        self._columns = [[*map(Tensor.data_ptr, column)] for column in columns]
        self._options: dict[str, int] = {"maximize": maximize}
        self._all: native.Table | None = None
        if counts:
            self._options |= {
                "param_type": storage_type("params", params, counts),
                "grad_type": storage_type("grads", grads, counts),
                "cell_type": storage_type("cells", cells, counts, 2 * hidden) if hidden else 0,
            }
            check_all_float32("moments", moments, [MOMENTS * count for count in counts])
        if plains and storage_type("plains", plains, counts) != self._options["grad_type"]:
            raise ValueError(
                f"plains must be {grads[0].dtype}, as grads, but are {plains[0].dtype}"
            )

    def survey(self) -> Tensor:
        """Whether the gradient holds NaN or infinity, and `Default.summarize`.

        Returns:
            `(T, 1 + 7)`: 1 or 0, then the sums.

        Raises:
            native.Unavailable: where the kernels are not built.
        """
        survey = torch.zeros(len(self._counts), 1 + SUMS, dtype=torch.float32, device="cpu")
        everybody = range(len(self._counts))
        self._call("learned_optim_default_survey", everybody, {}, survey=survey.data_ptr())
        return survey

    def update_(
        self,
        signals: Tensor,
        weights: Tensor,
        *,
        units: int,
        moving: Sequence[int] | None = None,
        steps: Mapping[int, Tensor] | None = None,
        lr: float = 1.0,
        keep: float = 1.0,
    ) -> None:
        """`param <- keep * param + lr * step`, of which part is deferred; or the whole step alone.

        A coordinate whose step is not finite keeps its parameter and its state. autograd does not
        notice that the parameters change: the caller tells it (`increment_version`).

        Args:
            signals: `(M, T)`, what `Default.control` gave.
            weights: `(default_weight_count(units, hidden),)`, see `default_step_`.
            units: of the controller; tells where in `weights` the coordinates' begin.
            moving: the tensors to move, by number; None: all.
            steps: where one is given, float32 with a number for each coordinate, the step goes
                there and the parameter stays.
            lr: factor on the step.
            keep: factor on the parameter.

        Raises:
            ValueError: for a wrong size, dtype, device or layout.
            native.Unavailable: where the kernels are not built.
        """
        check_float32("signals", signals, (SIGNALS, len(self._counts)))
        check_float32("weights", weights, (default_weight_count(units, self._hidden),))
        steps = steps or {}
        for index, step in steps.items():
            if not 0 <= index < len(self._counts):
                raise ValueError(
                    f"steps must be of tensors 0 to {len(self._counts) - 1} but one is of {index}"
                )
            check_float32("steps", step, (self._counts[index],))
        if moving is not None:
            signals = signals[:, moving].contiguous()
        before = HAND + level_count(TELLS, units, ADVICE)
        self._call(
            "learned_optim_default_update",
            range(len(self._counts)) if moving is None else moving,
            {index: step.data_ptr() for index, step in steps.items()},
            weights=weights.data_ptr() + before * weights.element_size(),
            signals=signals.data_ptr(),
            lr=lr,
            keep=keep,
            guard=True,
        )

    def _call(
        self, function: str, members: Sequence[int], outs: dict[int, int], **options: float
    ) -> None:
        """Call a kernel for the tensors of these numbers."""
        if not members:
            return
        table = self._table(members, outs)
        arguments = structs.DefaultArguments(
            count=len(members),
            rules=1,
            tensors=table.address,
            hidden=self._hidden,
            threads=self._threads,
            **self._options,
            **options,
        )
        native.call(function, arguments)

    def _table(self, members: Sequence[int], outs: dict[int, int]) -> native.Table:
        """`DefaultTensor` of src/table.h for each of them; that of all, whole, is kept."""
        in_order = [*members] == [*range(len(self._counts))]
        whole = in_order and not outs
        if whole and self._all is not None:
            return self._all
        pointers, counts = [c or [0] * len(self._counts) for c in self._columns], self._counts
        columns = [*pointers, [outs.get(i, 0) for i in range(len(counts))], counts, counts]
        if not in_order:
            columns = [[column[i] for i in members] for column in columns]
        table = native.Table(*columns)
        if whole:
            self._all = table
        return table
