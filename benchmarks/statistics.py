"""Summaries of runs: means with bootstrap intervals, quantiles, ratios of paired runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_RESAMPLES = 10_000
_SEED = 20_160_614  # fixed, so that a table can be rebuilt to the last digit


def _resampled_means(values: Tensor) -> Tensor:
    """`(..., runs)` -> `(..., resamples)`; the same rows are drawn for every leading index."""
    runs = values.shape[-1]
    generator = torch.Generator().manual_seed(_SEED)
    index = torch.randint(runs, (_RESAMPLES, runs), generator=generator)
    return values.double()[..., index].mean(-1)


def _interval(values: Tensor) -> list[float]:
    return torch.quantile(values, torch.tensor([0.025, 0.975]).double()).tolist()


def summary(values: Tensor) -> dict[str, Any]:
    """Mean, its 95 % percentile-bootstrap interval, median and count of `values` `(runs,)`."""
    return {
        "mean": values.double().mean().item(),
        "interval_95": _interval(_resampled_means(values)),
        "median": values.double().median().item(),
        "worst": values.double().max().item(),
        "runs": len(values),
    }


def ratio(values: Tensor, reference: Tensor) -> dict[str, Any]:
    """Ratio of the means of paired runs, `(runs,)` each, and its 95 % bootstrap interval.

    Pairs (the same functions, starts and minibatches) are resampled together.
    """
    means = _resampled_means(torch.stack((values, reference)))
    return {
        "mean": (values.double().mean() / reference.double().mean()).item(),
        "interval_95": _interval(means[0] / means[1]),
    }


def curve(losses: Tensor) -> dict[str, list[float]]:
    """Mean, median and quartiles at each step of `losses` `(runs, steps + 1)`, 5 digits."""
    quartiles = torch.quantile(losses.double(), torch.tensor([0.25, 0.5, 0.75]).double(), dim=0)
    rows = {"mean": losses.double().mean(0), "median": quartiles[1]}
    rows |= {"lower": quartiles[0], "upper": quartiles[2]}
    return {key: [float(f"{value:.5g}") for value in row.tolist()] for key, row in rows.items()}
