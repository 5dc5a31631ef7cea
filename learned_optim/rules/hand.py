"""The hand rule beneath the rule `default`: constants and schedule, no learning.

Its step is `length * direction`: the direction of Adam, and a length relative to the tensor's own
scale that warms up and decays on a fixed schedule, times a factor of the tensor, its pace (see
`feedback`). Every number is a meta-parameter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learned_optim.rules.base import Clock, Weights, fixed_weights

# The constants at the start: step sizes and tau from short probes (pretrained/default/README.md),
# the others as Adam and Muon have them or first guesses.
HAND: dict[str, tuple[float, ...]] = {
    "log_step": (math.log(0.1), math.log(0.1)),  # of matrices, of all others
    "log_floor": (math.log(0.3), math.log(0.1)),  # least scale; of matrices, times fan_in^-1/2
    "logit_beta1": (math.log(0.6 / 0.4),),
    "logit_beta2": (math.log(0.93 / 0.07),),
    "log_warmup": (math.log(10.0),),  # steps
    # Steps until the length starts to fall, horizon unknown and known.
    "log_tau": (math.log(30.0), math.log(1000.0)),
    # Of that fall; of the fall to nothing at the end, horizon known.
    "power": (0.5, 1.0),
    "blend": (2.0,),  # logit of the share of the orthogonalised direction
    "log_gain": (0.0,),  # length of the orthogonalised step over that of the other
    "log_rate": (math.log(0.06), math.log(0.06)),  # of the feedback; of matrices, of all others
    "brake": (1.0,),  # taken off the log of the pace in a step when steps run away
    # The agreement of gradient and momentum that keeps the pace, in tenths, horizon unknown and
    # known; and how far off it may be before the pace changes.
    "aim": (-0.5, -0.5),
    "log_band": (math.log(0.1),),
    # Of each step, the share that is taken later (see `deferral`); of what is owed, the part that
    # falls due: this over the number of steps so far.
    "logit_share": (math.log(0.6 / 0.4),),
    "log_due": (math.log(4.0),),
    # Root mean square of a gradient over that of those before, at most, in the momentum.
    "log_clip": (math.log(2.0),),
    # Of what a tensor's scale grows by, the share that is taken off a high pace (see `feedback`).
    "repay": (1.0,),
}
# Steps after which the length falls no faster than their root. Meta-training sees episodes of some
# hundred steps, and a power that suits those would end the training of runs ten times as long.
LONG, LONG_POWER = 1000.0, 0.5
# Where the horizon is known: the share of it that the warm-up may take; below so many steps, the
# fewer they are the longer each, so that a run of 20 gets somewhere; below the last, no longer.
RISING, SHORT, SHORTEST = 0.1, 300.0, 5.0
BRIEF = 100.0  # steps: a run that is told so few defers nothing, one that is told twice as many all
# Stored as value / HAND_SCALE: one size of perturbation and one meta-learning rate then suit these
# constants, where a change of 0.5 is small, and the networks' weights, where 0.1 is.
HAND_SCALE = 5.0


def hand_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the meta-parameters."""
    return {f"hand.{key}": (len(values),) for key, values in HAND.items()}


def hand_weights() -> Weights:
    """The constants of `HAND` as they are stored."""
    return {f"hand.{key}": value / HAND_SCALE for key, value in fixed_weights(HAND).items()}


def constant(weights: Weights, key: str) -> Tensor:
    """The value of a constant of `HAND`, `(..., values)`."""
    return weights[f"hand.{key}"] * HAND_SCALE


def floor(facts: dict[str, Tensor], weights: Weights) -> Tensor:
    """The least scale that a tensor's step is measured against, `(..., T)`.

    Tensors that start at zero have no scale of their own; a matrix has that of its initialisation.
    """
    return by_kind(constant(weights, "log_floor"), facts).exp() / facts["fan_in"].sqrt()


def hand_length(facts: dict[str, Tensor], schedule: Tensor, weights: Weights) -> Tensor:
    """The length of the step relative to the tensor's scale, before the pace, `(..., T)`."""
    return by_kind(constant(weights, "log_step"), facts).exp() * schedule


def hand_schedule(clock: Clock, weights: Weights) -> Tensor:
    """The length of the step over that of its kind of tensor, `(..., T)`.

    It rises over the warm-up, then falls as a power of time, after `LONG` steps no faster than
    their root: steps that a tensor survives some hundred times are too long for thousands. Where
    the horizon is known it falls later, and to its last value at the end, which it keeps if the
    training goes on; short runs rise sooner and take longer steps, as one over the root of their
    length.
    """
    total = clock.total_steps
    rise = constant(weights, "log_warmup").exp()
    if total is not None:
        rise = torch.minimum(rise, (RISING * total).clamp_min(1))
    warmup = (clock.step / rise).clamp_max(1)
    # Powers below 0 would let the length rise without bound.
    power, ending = constant(weights, "power").clamp_min(0).split(1, dim=-1)
    unknown, known = constant(weights, "log_tau").exp().split(1, dim=-1)
    tau = unknown if total is None else known
    early = 1 + clock.step.clamp_max(LONG) / tau
    late = (1 + clock.step / tau) / early
    fall = early**-power * late ** -power.clamp_max(LONG_POWER)
    if total is not None:
        left = (total - clock.step + 1).clamp_min(1) / total
        brief = (SHORT / total.clamp_min(SHORTEST)).clamp_min(1).sqrt()
        fall = fall * left.clamp_max(1) ** ending * brief
    return warmup * fall


def deferred(clock: Clock, weights: Weights) -> tuple[Tensor, Tensor]:
    """The share of a step that waits and the part of what is owed that falls due, `(..., T)`."""
    # All of it at the first step. Below 1 what is taken could grow beyond every step.
    pace = constant(weights, "log_due").exp().clamp_min(1)
    return waiting(clock.total_steps, weights), pace / (clock.step + pace - 1)


def waiting(total_steps: Tensor | None, weights: Weights) -> Tensor:
    """The share of a step that waits, `(..., T)`; none in a run that was told `BRIEF` steps."""
    share = constant(weights, "logit_share").sigmoid()
    return share if total_steps is None else share * (total_steps / BRIEF).log2().clamp(0, 1)


def by_kind(pair: Tensor, facts: dict[str, Tensor]) -> Tensor:
    """A constant of matrices and one of all others, `(..., 2)` -> `(..., T)`."""
    matrix, other = pair.split(1, dim=-1)
    return facts["is_matrix"] * matrix + (1 - facts["is_matrix"]) * other
