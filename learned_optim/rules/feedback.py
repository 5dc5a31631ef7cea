"""The pace of a tensor under the rule `default`: a factor on its steps, set by its gradients.

The pace rises while gradients go on to point along the momentum, and falls once they turn against
it. The first says that the steps are short, the second that they go too far: in units of both
norms, the agreement is minus the derivative of the loss with respect to the length of the last step
(Almeida et al., "Parameter adaptation in stochastic optimization", 1998; Baydin et al., "Online
learning rate adaptation with hypergradient descent", ICLR 2018, which add to the rate what is here
added to its logarithm). Followed to the letter that is greedy, and amid noise it anneals too early
(Wu et al., "Understanding short-horizon bias", ICLR 2018). Hence an aim below zero with a band
around it, in which the schedule has the last word; and the pace changes slowly at first, when all
gradients agree, and towards the end of a known horizon, when a change no longer pays. Slow as that
is, a pace that has risen too far is noticed late: so there is a brake that takes effect at once. In
a short run that was told so it comes sooner: first steps that undo what a network knew, or that a
network of sines does not bear, show in gradients that grow while they do not agree, and there is no
time to make them good.

That gradients turn against the momentum is not yet a reason to go slower. Across a narrow valley
they do at any pace, as steps are as long whatever the gradients are, while the way along it is as
far as before. Which of the two it is, what is owed of the steps so far knows (`deferral`): it is
their sum over a long time, in which what goes to and fro cancels. Where it still leads downhill the
pace stays; where gradients point against it, the tensor has gone too far as a whole.

Nor does a gradient say anything once rounding has the better of it. What knows all of its examples
has agreed until then, so the pace is at its highest, and full steps that way leave the solution for
good. So the pace falls while gradient and momentum are far below the largest gradient so far.

Steps are a share of a tensor's scale. One that starts too small, such as a table of embeddings
drawn near zero, asks for a high pace until it has grown; then steps are as many times too long,
and amid noise no gradient says so, while the tensor grows by its own steps. So what a scale grows
by is repaid: a high pace falls by it, and the step stays as long as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from learned_optim.rules.base import Clock, Weights
from learned_optim.rules.clipping import FIRST, squares_before
from learned_optim.rules.hand import by_kind, constant
from learned_optim.rules.ranges import tiny

# Of the log of the pace. Slower is always safe; what can be fitted to nothing asks for twelve times
# as fast. Twice as fast is common, and not repaid.
SLOWEST, FASTEST, COMMON = -4.0, 2.5, math.log(2)
SMOOTH = 10.0  # steps that the agreement is averaged over
# Steps that the outlook is averaged over; the cosine against what is owed that lets the pace fall
# at its full rate; and the agreement below which it falls in any case: so small a tensor that it
# has but one way to go to and fro.
FAR_SMOOTH, UPHILL, FAR_AGAINST = 20.0, 0.03, -0.65
SETTLED = 100.0  # steps until the pace changes at its full rate
# Steps run away where a gradient points against the momentum, the cosine below this, and its mean
# square is so many times the running mean with it: at a second decay of 0.93, where its root is
# five times that of those before.
AGAINST, LARGE = -0.5, 9.0
# The same within the `FIRST` steps of a run that was told fewer than `SHORT_RUN`; wholly up to half
# of that. In longer runs it costs what can be fitted to nothing more than it gives.
SHORT_RUN = 200.0
FIRST_AGAINST, FIRST_LARGE = 0.1, 6.0
# Of the largest gradient so far, in root mean squares, what counts as rounding. The largest grows
# by at most this factor a step, as one gradient that explodes must not make rounding of all that
# follow, and is forgotten as this power of time.
ROUNDING, GROWS, FORGOTTEN = 1e-4, 1.1, 0.5
# The part of the brake that the pace then falls by in a step, times the log of how far below it is,
# at most the last.
SINKING, FAINTEST = 0.1, 3.0


class Feedback(NamedTuple):
    """What a tensor remembers, `(..., T)` each; zeros before the first step.

    Attributes:
        pace: log of the factor on the length.
        agreement: mean over about `SMOOTH` steps of `agreement`.
        scale: of the tensor, that its length is relative to.
        outlook: mean over about `FAR_SMOOTH` steps of `outlook`.
        largest: root mean square of the gradient at its largest, see `ROUNDING`.
    """

    pace: Tensor
    agreement: Tensor
    scale: Tensor
    outlook: Tensor
    largest: Tensor


def agreement(means: Mapping[str, Tensor]) -> Tensor:
    """Cosine of the angle between the gradient and the momentum before it; 0 if one is zero.

    Args:
        means: over the tensor's coordinates, of the squares `g2` and `m2` and the product `gm`.
    """
    least = tiny(means["g2"])
    return means["gm"] / ((means["g2"] + least).sqrt() * (means["m2"] + least).sqrt())


def outlook(means: Mapping[str, Tensor]) -> Tensor:
    """Cosine of the angle between what is owed and the way downhill; 0 if one is zero.

    Args:
        means: see `agreement`; `go` and `o2` are the products with what is owed.
    """
    least = tiny(means["g2"])
    return -means["go"] / ((means["g2"] + least).sqrt() * (means["o2"] + least).sqrt())


def runs_away(means: Mapping[str, Tensor], mean_v: Tensor) -> Tensor:
    """Whether steps are so long that the loss grows; see `AGAINST`.

    Amid noise either is common in a small tensor, but not both at once.
    """
    return (agreement(means) < AGAINST) & (means["g2"] > LARGE * mean_v)


def starts_wrongly(
    means: Mapping[str, Tensor], beta2: Tensor, step: Tensor, total_steps: Tensor
) -> Tensor:
    """The share of the brake that first steps of a short run call for, in [0, 1]; see `FIRST`.

    Args:
        means: see `agreement`; and `v`, the running mean of squares as it is stored.
        beta2: its decay.
        step: number of the step.
        total_steps: the horizon.
    """
    before = squares_before(means, beta2, step)
    grown = (agreement(means) < FIRST_AGAINST) & (means["g2"] > FIRST_LARGE * before)
    share = (SHORT_RUN / total_steps).log2().clamp(0, 1)
    return share * (grown & (step <= FIRST))


def largest_of(before: Tensor, means: Mapping[str, Tensor], step: Tensor) -> Tensor:
    """The largest gradient so far, its root mean square, `(..., T)`; see `ROUNDING`."""
    rms = (means["g2"] + tiny(before)).sqrt()
    grown = torch.where(before > 0, torch.minimum(rms, GROWS * before), rms)
    return torch.maximum(before * (1 - FORGOTTEN / step), grown)


def sinks(means: Mapping[str, Tensor], largest: Tensor) -> Tensor:
    """The part of the brake that gradients lost in rounding call for, `(..., T)`; see `ROUNDING`.

    Args:
        means: see `agreement`. The momentum counts too: a minibatch may have nothing left to learn
            while others have.
        largest: of the gradients so far.
    """
    least = tiny(largest)
    now = (torch.maximum(means["g2"], means["m2"]) + least).sqrt()
    below = (ROUNDING * largest + least) / now
    return SINKING * below.log().clamp(0, FAINTEST)


def repaid(before: Feedback, scale: Tensor, weights: Weights) -> Tensor:
    """The pace less what the scale has grown by, but not below `COMMON` for that, `(..., T)`."""
    last = torch.where(before.scale > 0, before.scale, scale)
    # Below 0 a scale that grows would lengthen the steps.
    owed = constant(weights, "repay").clamp_min(0) * (scale / last).clamp_min(1).log()
    return torch.where(before.pace > COMMON, (before.pace - owed).clamp_min(COMMON), before.pace)


def feedback(
    before: Feedback,
    means: Mapping[str, Tensor],
    mean_v: Tensor,
    beta2: Tensor,
    more_aim: Tensor,
    scale: Tensor,
    facts: dict[str, Tensor],
    clock: Clock,
    weights: Weights,
) -> Feedback:
    """What the tensor remembers after this step's gradient.

    Args:
        before: the same of the step before.
        means: see `agreement` and `starts_wrongly`.
        mean_v: running mean of the gradients' squares, over the coordinates.
        beta2: decay of the squares.
        more_aim: added to the constant `aim`.
        scale: of the tensors now.
        facts: of the tensors.
        clock: the time.
        weights: the constants.
    """
    mean = before.agreement + (agreement(means) - before.agreement) / SMOOTH
    ahead = before.outlook + (outlook(means) - before.outlook) / FAR_SMOOTH
    aim, known = (0.1 * constant(weights, "aim")).split(1, dim=-1)
    settled = (clock.step / SETTLED).clamp_max(1)
    if clock.total_steps is not None:
        aim, settled = known, settled * (1 - clock.step / clock.total_steps).clamp_min(0)
    off, band = mean - aim - more_aim, constant(weights, "log_band").exp()
    uphill = (-ahead / UPHILL).clamp(0, 1)
    below = uphill * (off + band).clamp_max(0) + (1 - uphill) * (mean - FAR_AGAINST).clamp_max(0)
    beyond = (off - band).clamp_min(0) + below
    rate = by_kind(constant(weights, "log_rate"), facts).exp() * settled
    moved, brake = rate * beyond, constant(weights, "brake")
    if clock.total_steps is not None:
        share = starts_wrongly(means, beta2, clock.step, clock.total_steps)
        moved = torch.where(share > 0, -share * brake, moved)
    moved = torch.where(runs_away(means, mean_v), -brake, moved)
    largest = largest_of(before.largest, means, clock.step)
    sunk = moved - brake * sinks(means, largest)
    pace = (repaid(before, scale, weights) + sunk).clamp(SLOWEST, FASTEST)
    now = pace, mean, scale, ahead, largest
    # A gradient or a momentum of zero says nothing.
    speaks = (means["g2"] > 0) & (means["m2"] > 0)
    return Feedback(*(torch.where(speaks, *pair) for pair in zip(now, before, strict=True)))
