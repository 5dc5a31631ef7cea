"""The rule `default` as it ships in torch's operations alone: where there are no kernels.

Blocks, gathering, masks and the matrix stage are the reference's (`eager`). `summarize` and
`update`, of a rule without an LSTM for each coordinate, are done in memory that is planned once:
five numbers a coordinate of a block, which stay in the cache, where fresh ones for each result do
not.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.backends.base import Batch
from learned_optim.backends.blocks import is_real
from learned_optim.backends.eager import Eager
from learned_optim.rules import Coordinates, Default, State, UpdateRule
from learned_optim.rules.default import CLIP, DEAD, SIGNALS
from learned_optim.rules.ranges import limit


class PlannedDefault(Eager):
    """`default` without an LSTM for each coordinate, on the CPU; float32 and float64."""

    name: ClassVar[str] = "planned"

    def __init__(self) -> None:
        super().__init__()
        self._memory: dict[torch.dtype, Tensor] = {}

    @staticmethod
    def supports(rule: UpdateRule, device: torch.device, dtype: torch.dtype) -> str | None:
        """`default` as it ships, where nothing is compiled."""
        if device.type != "cpu":
            return f"it runs on the CPU, not on {device.type}"
        if type(rule) is not Default or rule.hidden:
            return "it knows the rule 'default' without an LSTM for each coordinate alone"
        if torch.compiler.is_compiling():
            return "a compiler plans memory by itself"
        return None

    def summarize(self, batch: Batch, coords: Coordinates, state: State) -> Tensor:
        """See `Eager.summarize`."""
        if not is_real(coords):
            return super().summarize(batch, coords, state)
        m, v, owed = state["moments"].unbind()
        g, x, theirs = self._rows(batch, len(coords.grad))[:3]
        most, dot = limit(g), torch.dot
        torch.clamp(coords.grad, -most, most, out=g)
        torch.nan_to_num(coords.param, 0.0, 0.0, 0.0, out=x).clamp_(-most, most)
        sums = [dot(g, g), v.sum(), dot(m, m), dot(g, m), dot(x, x)]
        owed = torch.clamp(owed, -most, most, out=theirs)
        if coords.plain is not None:
            torch.clamp(coords.plain, -most, most, out=g)
        return torch.stack((*sums, dot(g, owed), dot(owed, owed)))

    def update(
        self, batch: Batch, coords: Coordinates, state: State, signals: Tensor
    ) -> tuple[Tensor, State]:
        """See `Eager.update`; the state that it returns lasts until the next call."""
        if not is_real(coords):
            return super().update(batch, coords, state, signals)
        s = dict(zip(SIGNALS, signals.unbind(), strict=True))
        m, v, owed = state["moments"].unbind()
        rows = self._rows(batch, len(coords.grad))
        (g, x), (new_m, new_v, new_owed) = rows[:2], rows[2:]
        torch.clamp(coords.grad, -limit(g), limit(g), out=g)
        torch.lerp(m, torch.mul(g, s["clip"], out=x), 1 - s["beta1"], out=new_m)
        torch.lerp(v, torch.mul(g, g, out=x), 1 - s["beta2"], out=new_v)
        new_owed.copy_(owed)
        per_root = torch.mul(new_v, s["v_scale"], out=x).add_(DEAD).rsqrt_()
        direction = torch.mul(new_m, s["m_scale"], out=g).mul_(per_root).clamp_(-CLIP, CLIP)
        # Not in memory that is kept: a step may wait for the matrix stage.
        return direction * -s["length"], {"moments": rows[2:]}

    def _rows(self, batch: Batch, count: int) -> Tensor:
        """Room for two numbers of each coordinate, and for its moments; `(5, count)`."""
        dtype = batch.compute_dtype
        if dtype not in self._memory:
            self._memory[dtype] = torch.empty(5 * self.block_size(batch), dtype=dtype, device="cpu")
        return self._memory[dtype][: 5 * count].view(5, count)
