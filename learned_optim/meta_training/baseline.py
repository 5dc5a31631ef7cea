"""What a tuned Adam reaches on the same optimizees: the unit in which families are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from learned_optim.meta_training.unroll import Runs, advance, begin
from learned_optim.rules import Adam, UpdateRule, Weights
from learned_optim.tasks.base import Task

# Four a decade. Part of the meaning of every "log_adam" score: a change makes scores incomparable.
RATES = tuple(10 ** (-4 + k / 4) for k in range(15))


@torch.no_grad()
def loss_curve(
    rule: UpdateRule, weights: Weights, runs: Runs, steps: int, total_steps: int | None = None
) -> Tensor:
    """The losses of `steps` inner steps, `(steps + 1, *lead)`, from the initial loss on."""
    layout, carry = begin(rule, runs)
    losses = [carry.loss]
    for _ in range(steps):
        carry = advance(rule, weights, runs, layout, carry, total_steps, consume=True)
        losses.append(carry.loss)
    return torch.stack(losses)


def tail_mean(curve: Tensor, fraction: float) -> Tensor:
    """Mean over the last `fraction` of the steps, `(steps + 1, *lead)` -> `(*lead)`."""
    steps = curve.shape[0] - 1
    return curve[-max(1, round(fraction * steps)) :].mean(0)


def adam_curves(
    task: Task,
    seeds: Sequence[int],
    steps: int,
    rates: Sequence[float],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Adam at every rate, side by side on the same minibatches, `(steps + 1, R, rates)`."""
    rule = Adam()
    one = rule.init_weights(torch.Generator())
    weights = {key: value.expand(len(rates)).clone() for key, value in one.items()}
    weights["log_lr"] = torch.tensor([math.log(rate) for rate in rates])
    weights = {key: value.to(device) for key, value in weights.items()}
    return loss_curve(rule, weights, Runs(task, seeds, len(rates), device=device), steps)


def tuned_adam(
    task: Task,
    seeds: Sequence[int],
    steps: int,
    fraction: float,
    rates: Sequence[float] = RATES,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, float]:
    """Adam at the rate with the least mean of the logarithm of the final loss.

    Returns:
        `tail_mean` of each run at that rate, `(R,)`, and the rate.
    """
    final = tail_mean(adam_curves(task, seeds, steps, rates, device), fraction)
    final = torch.where(final.isfinite(), final, torch.full_like(final, math.inf))
    best = int(final.clamp_min(1e-30).log().mean(0).argmin())
    return final[:, best], rates[best]
