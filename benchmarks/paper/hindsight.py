"""The MNIST rule on many networks, beside baselines whose rates are chosen with hindsight."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import Sweep
from benchmarks.learned import Learned
from benchmarks.results import provenance, write_json
from benchmarks.runs import Problem, Stepper, run
from benchmarks.statistics import summary
from learned_optim.weights import LoadedRule


def finals(
    problem: Problem,
    rule: LoadedRule,
    rates: Mapping[str, Sequence[float]],
    name: str,
    tail: int = 1,
) -> dict[str, Any]:
    """Final losses of the rule, `learned`, and of each baseline at its best rate on these runs.

    Args:
        problem: what is trained.
        rule: the learned one.
        rates: those tried, by baseline.
        name: for the progress bar.
        tail: the final loss is the mean over so many last steps.
    """
    started = time.process_time()
    entries = {"learned": summary(_final(problem, lambda: Learned(rule), name, tail)[:, 0])}
    for key, tried in rates.items():
        sweep = {key: tried}
        losses = _final(problem, lambda sweep=sweep: Sweep(sweep), f"{name}, {key}", tail)
        best = int(losses.mean(0).argmin())
        entries[key] = summary(losses[:, best]) | {"rate": tried[best]}
    return {"entries": entries, "cpu_seconds": round(time.process_time() - started, 1)}


def _final(problem: Problem, make: Callable[[], Stepper], name: str, tail: int) -> Tensor:
    """`(runs, K)`, infinite where a run diverged."""
    losses = run(problem, make, progress=name).losses[..., -tail:].mean(-1)
    return losses.nan_to_num(torch.inf)


def complete(
    path: Path, field: str, rule: LoadedRule, networks: Mapping[str, Callable[[], dict[str, Any]]]
) -> None:
    """Measure the networks that `path` lacks for these weights, and write it after each.

    Args:
        path: of the JSON.
        field: of the JSON that holds them, by name.
        rule: whose weights count.
        networks: what measures each; its result has `cpu_seconds`.
    """
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    done = saved.get(field, {}) if saved.get("weights_sha256") == rule.sha256 else {}
    for name, measure in networks.items():
        if name in done:
            continue
        done[name] = measure()
        seconds = round(sum(each["cpu_seconds"] for each in done.values()), 1)
        content = {"weights_sha256": rule.sha256, field: done, **provenance()}
        write_json(path, content | {"cpu_seconds": seconds})
