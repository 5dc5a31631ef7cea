"""From final losses to the table: ratios, shares of wins, intervals, steps, rises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.general.grids import METHODS
from benchmarks.general.store import LABELS, MEAN, TOLD, Entry, Record
from benchmarks.general.training import FLOOR
from benchmarks.statistics import summary

CLIP = 10.0  # a ratio counts at most this much either way: one solved task must not decide
RISE = 1.1
_HUGE = 1e30  # in place of a loss that is not finite, so that two of them are equally bad


def losses(values: list[float | None]) -> Tensor:
    """A list over runs, None for what was not finite."""
    numbers = [_HUGE if value is None else min(value, _HUGE) for value in values]
    return torch.tensor(numbers, dtype=torch.float64)


def log_ratio(record: Record, key: str, other: str, metric: str = "final") -> float | None:
    """Of one problem: the mean over runs of the clipped logarithm of the ratio of two losses.

    None where the problem has no such loss. Both losses get `FLOOR` times the start's added.
    """
    ours, theirs = (record["entries"][name][metric] for name in (key, other))
    if ours is None or theirs is None:
        return None
    floor = FLOOR * losses(record["start"])
    ratio = (losses(ours) + floor) / (losses(theirs) + floor)
    return float(ratio.log().clamp(-math.log(CLIP), math.log(CLIP)).mean())


def versus(
    records: Mapping[str, Record], key: str, other: str, metric: str = "final"
) -> dict[str, Any]:
    """Geometric mean over problems of the ratio, its interval over problems, the share of wins."""
    found = [log_ratio(record, key, other, metric) for record in records.values()]
    values = torch.tensor([value for value in found if value is not None], dtype=torch.float64)
    if not len(values):
        return {"ratio": math.nan, "interval_95": [math.nan, math.nan], "wins": 0.0, "problems": 0}
    facts = summary(values)
    return {
        "ratio": math.exp(facts["mean"]),
        "interval_95": [math.exp(end) for end in facts["interval_95"]],
        "wins": float((values < 0).double().mean()),
        "problems": len(values),
    }


def speed(record: Record, key: str) -> list[float]:
    """For each run, the share of the steps at which it first gets to tuned Adam's final loss.

    Judged by the points of the stored curve; infinite if never.
    """
    targets = losses(record["entries"]["adam"]["final"])
    shares = []
    for row, target in zip(record["entries"][key]["curve"], targets, strict=True):
        reached = (losses(row) <= target).nonzero()
        shares.append((int(reached[0]) + 1) / len(row) if len(reached) else math.inf)
    return shares


def judge(records: Mapping[str, Record], key: str) -> dict[str, Any]:
    """Everything that the table says of one entry."""
    told = next((end for end in (TOLD, MEAN) if key.endswith(end)), "")
    names = set.intersection(*(set(record["entries"]) for record in records.values()))
    # Controls are told what the entry is told, and looked at as it is.
    rivals = [name + told if name + told in names else name for name in LABELS]
    rivals = [name for name in rivals if name in names and name != key]
    shares = torch.tensor([share for record in records.values() for share in speed(record, key)])
    return {
        "versus": {name: versus(records, key, name) for name in rivals},
        "test_versus": {name: versus(records, key, name, "test") for name in ("adam",)},
        "steps_to_adam": {
            "median_share": float(shares.median()),
            "reached": float(shares.isfinite().double().mean()),
        },
        **late_rises(records, key),
        # For scale: minibatches alone lift a window above the lowest, where losses are small.
        "late_rises_of": {
            name: late_rises(records, name)["late_rises"] for name in rivals if name in METHODS
        },
    }


def late_rises(records: Mapping[str, Record], key: str) -> dict[str, Any]:
    """Runs, those that are not finite, those that rise late, and the largest rise."""
    rises = [rise for record in records.values() for rise in record["entries"][key]["rise"]]
    return {
        "runs": len(rises),
        "not_finite": sum(rise is None for rise in rises),
        "late_rises": sum(rise is None or rise > RISE for rise in rises),
        "worst_rise": max((math.inf if rise is None else rise) for rise in rises),
    }


def mean_loss(entry: Entry, metric: str = "final") -> float | None:
    """Over the runs; None where one is not finite, or the problem has no such loss."""
    values = entry[metric]
    if values is None or any(value is None or math.isinf(value) for value in values):
        return None
    return sum(values) / len(values)


def profile(records: Mapping[str, Record], key: str, keys: list[str], factor: float) -> float:
    """Share of the problems on which an entry is within a factor of the best of `keys`.

    Dolan and More, "Benchmarking optimization software with performance profiles", 2002.
    """
    within = 0
    for record in records.values():
        behind = max(log_ratio(record, key, other) or 0.0 for other in keys)
        within += behind <= math.log(factor) + 1e-12
    return within / len(records)
