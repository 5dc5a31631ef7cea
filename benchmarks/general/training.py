"""Train every run of a problem with every setting, and keep what the tables need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.general.items import Item
from benchmarks.general.steppers import Stepper
from learned_optim.meta_training.unroll import Runs
from learned_optim.tasks import Batch, Params

FINAL = 0.05  # of the steps: the mean over them is the final loss
WINDOW = 0.1  # of the steps: what a late rise is measured over
POINTS = 50  # of a stored curve, each the mean of its share of the steps
TEST_BATCHES = 16
# Losses below this fraction of the loss at the start count as solved: both sides of every ratio
# get it added, or rounding would decide who is best.
FLOOR = 1e-5


@dataclass(frozen=True)
class Outcome:
    """Of R runs with K settings; a loss that is not finite is infinite.

    Attributes:
        start: loss at the start, `(R,)`.
        final: mean training loss over the last `FINAL` of the steps, `(R, K)`.
        test: mean loss on test minibatches at the end, `(R, K)`; None where there are none.
        rise: mean over the last `WINDOW` of the steps over the lowest such mean, `(R, K)`.
        curve: `(R, K, POINTS)`.
    """

    start: Tensor
    final: Tensor
    test: Tensor | None
    rise: Tensor
    curve: Tensor


def train(item: Item, make_stepper: Callable[[], Stepper], label: str = "") -> Outcome:
    """All runs side by side; a progress bar if there is a label.

    Losses are minibatch losses at the parameters before each update, the same minibatches for
    everyone; over the last `WINDOW` of the steps, at the parameters that a user would get.
    """
    stepper, task = make_stepper(), item.task
    runs = Runs(task, item.seeds(), perturbations=stepper.copies)
    params = {key: value.clone() for key, value in runs.start().items()}
    losses = []
    bar = tqdm(desc=f"{item.name}, {label}", total=item.steps, disable=not label, mininterval=5)
    for step in range(item.steps + 1):
        batch = runs.next_batch()
        grads, loss = runs.evaluate(params, batch)
        if step > (1 - WINDOW) * item.steps:
            stepper.show()
            loss = _losses(runs, params, batch)
            stepper.hide()
        losses.append(loss)
        if step < item.steps:
            stepper.step(params, grads)
            bar.update()
    bar.close()
    stepper.show()
    test = _test_loss(item, runs, params)
    stepper.hide()
    return summarize(torch.stack(losses, dim=-1).double(), test)


def _losses(runs: Runs, params: Params, batch: Batch) -> Tensor:
    """`(R, K)`."""
    loss = torch.func.vmap(torch.func.vmap(runs.task.loss, in_dims=(0, None)))
    return loss(params, batch)


def _test_loss(item: Item, runs: Runs, params: Params) -> Tensor | None:
    """The runs' constants, and minibatches that no training has drawn."""
    held = Runs(item.task, item.seeds(), perturbations=runs.perturbations, split="test")
    held.generators = [torch.Generator().manual_seed(seed) for seed in item.seeds("test")]
    if held.next_batch().keys() == held.constants.keys():
        return None
    parts = [_losses(held, params, held.next_batch()) for _ in range(TEST_BATCHES)]
    return _finite(torch.stack(parts).double().mean(0))


def summarize(losses: Tensor, test: Tensor | None) -> Outcome:
    """What is kept of losses `(R, K, steps + 1)`."""
    start, steps = losses[:, 0, 0], losses.shape[-1] - 1
    losses = _finite(losses)
    final = losses[..., -max(1, round(FINAL * steps)) :].mean(-1)
    width = max(1, round(WINDOW * steps))
    means = losses[..., 1:].unfold(-1, width, 1).mean(-1)
    floor = FLOOR * start[:, None]
    rise = (means[..., -1] + floor) / (means.amin(-1) + floor)
    points = torch.tensor_split(losses[..., 1:], min(POINTS, steps), dim=-1)
    curve = torch.stack([point.mean(-1) for point in points], dim=-1)
    return Outcome(start, final, test, _finite(rise), curve)


def _finite(losses: Tensor) -> Tensor:
    """NaN counts as infinitely bad, so that it cannot drop out of a comparison."""
    return losses.masked_fill(losses.isnan(), torch.inf)
