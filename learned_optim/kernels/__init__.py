"""Fused C++ kernels for the CPU: numbers and tensors in, numbers and tensors out.

Optional: `available()` says whether they are built, `why_not()` says what is missing. Nothing is
loaded before the first call.
"""

from __future__ import annotations

from learned_optim.kernels.bases import (
    FIRM,
    STILL,
    TURNING,
    Bases,
    see_,
)
from learned_optim.kernels.cells import cells_step_
from learned_optim.kernels.checks import CELLS, STORAGE, weight_count
from learned_optim.kernels.default_control import default_control_
from learned_optim.kernels.default_runs import (
    DefaultState,
    default_step_,
    default_weight_count,
)
from learned_optim.kernels.default_update import DefaultTensors
from learned_optim.kernels.large_steps import finish_, normalize
from learned_optim.kernels.lstm import lstm_bptt, lstm_vjp
from learned_optim.kernels.matrix_steps import straighten_, unsee_
from learned_optim.kernels.native import Unavailable, why_not
from learned_optim.kernels.take import take_
from learned_optim.kernels.update import cells_update_, count_up_, not_finite


def available() -> bool:
    """Whether the compiled kernels can be used on this machine."""
    return why_not() is None


__all__ = [
    "CELLS",
    "FIRM",
    "STILL",
    "STORAGE",
    "TURNING",
    "Bases",
    "DefaultState",
    "DefaultTensors",
    "Unavailable",
    "available",
    "cells_step_",
    "cells_update_",
    "count_up_",
    "default_control_",
    "default_step_",
    "default_weight_count",
    "finish_",
    "lstm_bptt",
    "lstm_vjp",
    "normalize",
    "not_finite",
    "see_",
    "straighten_",
    "take_",
    "unsee_",
    "weight_count",
    "why_not",
]
