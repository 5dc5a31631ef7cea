"""Tables in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from benchmarks.general.scores import log_ratio, mean_loss
from benchmarks.general.store import LABELS, MEAN, PLAIN_ADAM, TOLD, Record

COLUMNS = ("adam", "adamw_cosine", "muon_cosine", "momentum_cosine", PLAIN_ADAM, "prodigy")
COLUMNS += ("schedule_free", "hand" + TOLD)


def label(key: str) -> str:
    """For people."""
    name = key.removesuffix(TOLD).removesuffix(MEAN)
    ends = {TOLD: ", told", MEAN: ", at the mean"}
    return LABELS.get(name, name) + ends.get(key.removeprefix(name), "")


def summary_lines(judged: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Each entry against each rival, and what went wrong."""
    lines = []
    for key, facts in judged.items():
        lines.append(f"\n{label(key)}, against       ratio   (95 %)          wins")
        for name, pair in facts["versus"].items():
            low, high = pair["interval_95"]
            row = f"{pair['ratio']:8.3f}   ({low:.3f} to {high:.3f})   {pair['wins']:4.0%}"
            lines.append(f"  {label(name):38}{row}")
        pair = facts["test_versus"]["adam"]
        lines.append(f"  {'test loss, against tuned Adam':38}{pair['ratio']:8.3f}")
        reached = facts["steps_to_adam"]
        lines.append(
            f"  tuned Adam's final loss after {reached['median_share']:.0%} of the steps (median), "
            f"reached in {reached['reached']:.0%} of the runs"
        )
        if key.endswith(MEAN):  # only the last tenth of the steps is at the mean
            continue
        lines.append(
            f"  of {facts['runs']} runs {facts['late_rises']} rise late (worst "
            f"{facts['worst_rise']:.3g}), {facts['not_finite']} are not finite; late rises of "
            + ", ".join(f"{label(name)}: {count}" for name, count in facts["late_rises_of"].items())
        )
    return lines


def item_lines(records: Mapping[str, Record], key: str) -> list[str]:
    """A line a problem: the entry's final loss, and its ratio to each rival's."""
    columns = [name for name in COLUMNS if all(name in r["entries"] for r in records.values())]
    lines = ["", f"{label(key):28}{'loss':>10}" + "".join(f"{name[:11]:>12}" for name in columns)]
    for name, record in records.items():
        loss = mean_loss(record["entries"][key])
        line = f"{name:28}{'diverged' if loss is None else f'{loss:.4g}':>10}"
        for rival in columns:
            ratio = log_ratio(record, key, rival)
            line += f"{'-' if ratio is None else f'{math.exp(ratio):.3f}':>12}"
        lines.append(line)
    return lines


def show(records: Mapping[str, Record], judged: Mapping[str, Mapping[str, Any]]) -> None:
    """Print all tables."""
    for key in judged:
        print("\n".join(item_lines(records, key)))
    print("\n".join(summary_lines(judged)))
