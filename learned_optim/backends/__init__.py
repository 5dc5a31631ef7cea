"""How a step is computed: the eager reference, and faster backends beside it.

A backend is imported only when a parameter asks for it.
"""

from __future__ import annotations

import torch

from learned_optim.backends.base import Backend as Backend
from learned_optim.backends.base import Batch as Batch
from learned_optim.backends.base import Slot as Slot
from learned_optim.backends.base import autocast_off as autocast_off
from learned_optim.backends.cpu import Cpu
from learned_optim.backends.eager import Eager as Eager
from learned_optim.backends.first_stage import portions as portions
from learned_optim.backends.first_stage import see_ as see_
from learned_optim.backends.kept import capturing as capturing
from learned_optim.backends.planned_default import PlannedDefault as PlannedDefault
from learned_optim.backends.planned_l2l import PlannedL2L as PlannedL2L
from learned_optim.backends.triton import Triton
from learned_optim.rules import UpdateRule

# Faster than the reference, in order of preference.
FUSED: tuple[type[Backend], ...] = (Cpu, Triton)
# The reference's operations, in memory that is planned.
PLANNED: tuple[type[Backend], ...] = (PlannedL2L, PlannedDefault)


def choose(
    rule: UpdateRule, device: torch.device, dtype: torch.dtype, fused: bool | None
) -> type[Backend]:
    """The backend for parameters of one device and dtype.

    Args:
        rule: the rule that is to run.
        device: where the parameters are.
        dtype: of the parameters.
        fused: None takes the first fused backend that supports the case, else torch's operations
            alone; True demands a fused one; False takes torch's operations alone.

    Raises:
        RuntimeError: `fused` is True and no fused backend supports the case; says what each lacks.
    """
    if fused is False:
        return _torch_alone(rule, device, dtype)
    reasons = []
    for backend in FUSED:
        reason = backend.supports(rule, device, dtype)
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    if fused is None:
        return _torch_alone(rule, device, dtype)
    why = "; ".join(reasons) or "this version has only the eager backend"
    raise RuntimeError(
        f"fused=True: no fused backend supports the rule {rule.name!r} for {dtype} parameters on "
        f"{device} ({why}). fused=None takes a fused backend where there is one"
    )


def _torch_alone(rule: UpdateRule, device: torch.device, dtype: torch.dtype) -> type[Backend]:
    """The reference, but where the same operations are done in memory that is planned."""
    return next((kind for kind in PLANNED if not kind.supports(rule, device, dtype)), Eager)
