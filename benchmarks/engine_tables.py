"""The README's tables of the meta-training engine: throughput, estimators, faults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.markdown import markdown, number

ESTIMATOR_TITLES = {
    "tbptt": "`tbptt`",
    "tbptt_second": "`tbptt`, second derivatives",
    "nres": "`nres`",
}


def throughput(content: Mapping[str, Any]) -> str:
    """Milliseconds an inner step, and how many times the plain loop's speed."""
    found: dict[tuple[str, str, int], dict[str, str]] = {}
    for row in content["headline"]:
        place = found.setdefault((row["task"], row["estimator"], row["optimizees"]), {})
        ratio = "" if row["contender"] == "eager" else f" ({row['times_faster']:.1f}x)"
        place[row["contender"]] = f"{row['ms']:.2f}{ratio}"
    rows = [
        [
            f"{task}, {copies} at once, {ESTIMATOR_TITLES[estimator]}",
            *(place.get(name, "-") for name in ("eager", "torch", "kernels")),
        ]
        for (task, estimator, copies), place in found.items()
    ]
    header = ["Meta-training, CPU ms an inner step and optimizee", "plain loop", "no kernels"]
    return markdown([*header, "kernels"], rows)


def estimators(content: Mapping[str, Any]) -> str:
    """Of the meta-gradient of an LSTM on a quadratic, relative to its true length."""
    facts = content["quadratic"]
    rows = [
        [
            f"`{name}`",
            number(row["bias"]) if row["bias_seen"] else "none seen",
            number(row["standard_error"]),
            number(row["variance"]),
            number(row["cpu_ms_per_episode"]),
            number(row["error_after_second"]),
        ]
        for name, row in facts["rows"].items()
    ]
    title = f"Estimators, quadratic, {facts['steps']} steps, relative to the gradient's length"
    header = [title, "bias", "+-", "variance a run"]
    return markdown([*header, "CPU ms a run", "error after 1 s"], rows)


def faults(content: Mapping[str, Any]) -> str:
    """Kills and what they cost."""
    kills = content["kills"]
    row = [
        str(len(kills)),
        str(sum(kill["moment"] == "starting" for kill in kills)),
        f"{content['runs_bit_equal']} of {content['runs']}",
        str(content["leaves_compared"]),
    ]
    header = ["Kills at random moments, each resumed", "of them while starting"]
    return markdown([*header, "runs bit-equal to the unbroken one", "tensors compared"], [row])
