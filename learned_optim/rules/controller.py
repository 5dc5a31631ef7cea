"""What the controller of a tensor under the rule `default` sees, and its first memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learned_optim.rules.base import Clock
from learned_optim.rules.feedback import FASTEST, agreement
from learned_optim.rules.ranges import tiny

TELLS = 12  # numbers that it sees
LONGEST = 500.0  # steps that one drawn remembers


def memories(units: int) -> Tensor:
    """What the biases of input and forget gate are raised by, `(2 * units,)`.

    Unit k then averages over about tau_k steps, spaced from 2 to `LONGEST` by equal factors: what a
    controller sees in one step is mostly noise. Tallec and Ollivier, "Can recurrent neural
    networks warp time?", ICLR 2018, section 3, whose tau are drawn, and uniform.
    """
    tau = torch.logspace(
        math.log10(2), math.log10(LONGEST), units, dtype=torch.float32, device="cpu"
    )
    forget = (tau - 1).log()
    return torch.cat((-forget, forget))


def tells_of(
    means: dict[str, Tensor],
    mean_v: Tensor,
    growth: Tensor,
    pace: Tensor,
    facts: dict[str, Tensor],
    clock: Clock,
) -> Tensor:
    """What the controller sees, `(..., TELLS, T)`: free of the scale of loss and parameters."""
    least = tiny(mean_v)
    unknown = torch.zeros_like(clock.step)
    horizon = clock.total_steps
    done = unknown if horizon is None else (clock.step / horizon).clamp_max(1)
    tells = (
        ((means["g2"] + least) / (mean_v + least)).log().clamp(-6, 6) / 3,
        ((means["m2"] + least) / (mean_v + least)).log().clamp(-8, 8) / 4,
        agreement(means),
        growth.clamp_min(least).log().clamp(-4, 4),
        clock.step.log() / 5 - 1,
        done,
        unknown if horizon is None else torch.ones_like(unknown),
        facts["is_matrix"],
        facts["fan_in"].log() / 5,
        facts["fan_out"].log() / 5,
        (1 - done).clamp_min(1e-3).log() / 3,
        pace / FASTEST,
    )
    return torch.stack(torch.broadcast_tensors(*tells), dim=-2)
