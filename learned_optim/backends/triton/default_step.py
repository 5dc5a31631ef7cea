"""The step of the rule `default`: one launch for most tensors, one more for each matrix."""

from __future__ import annotations

from collections.abc import Sequence

import triton.language as tl
from torch import Tensor

from learned_optim.backends.copies import readable, write_back_
from learned_optim.backends.triton.constants import KINDS, MULTIPLIED_OUT, default_constants
from learned_optim.backends.triton.launch import Group, Launch, kernels
from learned_optim.rules import default


class DefaultStep:
    """A step of the rule `default` on T tensors, in place; nothing moves before `move_`.

    Args:
        grads: float32, bfloat16 or float16.
        params: the same shapes.
        moments: `(3, *shape)` each, float32: m, v and what is owed.
        cells: `(2 * hidden, *shape)` each; none where `hidden` is 0.
        columns: from `pack`.
        signals: `(M, T)` float32, from the rule's `control`.
        group: the settings.
        late: tensors that only `move_(tensor, steps)` moves.
    """

    def __init__(
        self,
        grads: Sequence[Tensor],
        params: Sequence[Tensor],
        moments: Sequence[Tensor],
        cells: Sequence[Tensor],
        columns: Tensor,
        signals: Tensor,
        group: Group,
        late: Sequence[int] = (),
    ) -> None:
        self._entries = [entry for entry in (params, moments, cells) if entry]
        self._rows = [readable(entry) for entry in self._entries]
        self._launch = Launch(readable(grads), self._rows, MULTIPLIED_OUT.block, late)
        self._columns, self._signals, self._group = columns, signals.contiguous(), group
        hidden = cells[0].shape[0] // 2 if cells else 0
        self._constants = {
            "GRAD": KINDS[grads[0].dtype],
            "PARAM": KINDS[params[0].dtype],
            "MOMENTS": KINDS[moments[0].dtype],
            "CELL": KINDS[cells[0].dtype] if cells else tl.float32,
            **group.flags(self._launch.device),
            **default_constants(hidden),
        }

    @property
    def flat_params(self) -> list[Tensor]:
        """The parameters that move, `(N,)` each: copies of those that are not contiguous."""
        return [param.view(-1) for param in self._rows[0]]

    @property
    def flat_owed(self) -> list[Tensor]:
        """What is owed of them, `(N,)` each: of copies likewise."""
        return [rows[default.OWED].view(-1) for rows in self._rows[1]]

    def move_(self, late: int | None = None, steps: Tensor | None = None) -> None:
        """Move all tensors that are not late, or the state of one that is: `steps` gets its step.

        Args:
            late: which; None for the others.
            steps: float32, as many as that tensor has coordinates.
        """
        launch = self._launch
        with launch.guard():
            for start, blocks, wide in launch.spans(late):
                kernels.default_update[(blocks,)](
                    *launch.tables, *self._group.arguments(launch.layout.sizes),
                    self._columns, self._signals, self._signals if steps is None else steps,
                    default.TURN, default.ADD, default.FREE, default.CLIP, default.DEAD, start,
                    UNFINISHED=steps is not None,
                    ALIGNED=wide,
                    **self._constants,
                )  # fmt: skip

    def write_back_(self) -> None:
        """Copy into place what was a copy; after the last `move_`."""
        for tensors, copies in zip(self._entries, self._rows, strict=True):
            write_back_(tensors, copies)
