"""Learning rates tuned on a grid, on validation runs, and kept in a JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import BASELINES, Sweep
from benchmarks.results import RESULTS, provenance, write_json
from benchmarks.runs import Problem, run

# A run that ends above this multiple of its own start has diverged. More than 1, because a
# minibatch loss that has not moved yet is as often above its start as below.
_DIVERGED = 1.5


@dataclass(frozen=True)
class Grid:
    """Learning rates `10^(k / per_decade)` from `10^low` to `10^high`.

    Attributes:
        ranges: baseline name -> (low, high), exponents of ten.
        per_decade: rates in a decade.
    """

    ranges: Mapping[str, tuple[float, float]]
    per_decade: int

    def rates(self, name: str) -> list[float]:
        """The rates of one baseline, ascending, rounded to 6 digits."""
        low, high = self.ranges[name]
        first, last = round(low * self.per_decade), round(high * self.per_decade)
        return [float(f"{10 ** (k / self.per_decade):.6g}") for k in range(first, last + 1)]


def choose(rates: Sequence[float], start: Tensor, final: Tensor, margin: int = 0) -> dict[str, Any]:
    """The rate with the least mean final loss among those at which no run diverged.

    Losses of random quadratics are heavy-tailed: a rate may be the best on average over a few
    hundred functions and diverge on the next. So a rate at which a single validation run ends
    above 1.5 times its start, or not finite, is out.

    Args:
        rates: `K` ascending rates.
        start: loss of each run before the first step, `(runs, K)`.
        final: at the end, `(runs, K)`.
        margin: so many rates below one at which a run diverged are out too.

    Raises:
        ValueError: if every rate diverges.
    """
    means = final.double().mean(0)
    diverged = (~(final <= _DIVERGED * start)).sum(0)
    out = (diverged > 0) | ~means.isfinite()
    for step in range(1, margin + 1):
        out[:-step] |= diverged[step:] > 0
    allowed = torch.where(out, math.inf, means)
    best = int(allowed.argmin())
    if not allowed[best].isfinite():
        raise ValueError(f"every learning rate in [{rates[0]}, {rates[-1]}] diverges")
    return {
        "rate": rates[best],
        "validation_mean": means[best].item(),
        "at_edge": best in (0, len(rates) - 1),
        "grid": list(rates),
        "means": [float(f"{mean:.5g}") for mean in means.tolist()],
        "diverged_runs": diverged.tolist(),
    }


def tune(problem: Problem, grid: Grid, label: str) -> dict[str, dict[str, Any]]:
    """Tune every baseline: its name -> what `choose` returns."""
    rates = {name: grid.rates(name) for name in BASELINES}
    losses = run(problem, lambda: Sweep(rates), progress=f"tuning, {label}").losses
    parts = losses.split([len(values) for values in rates.values()], dim=1)
    return {
        name: choose(rates[name], part[..., 0], part[..., -1])
        for name, part in zip(rates, parts, strict=True)
    }


def tuned(
    name: str, problem: Problem, grid: Grid, *, retune: bool = False
) -> dict[str, dict[str, Any]]:
    """`tune`, kept in `benchmarks/results/baselines/<name>.json`.

    The file is used for as long as it names this very problem and grid; ask for `retune` after a
    change of the code behind them.
    """
    path = baseline_path(name)
    validation = {
        "task": repr(problem.task),
        "runs": problem.runs,
        "steps": problem.steps,
        "stream": problem.stream,
        "per_decade": grid.per_decade,
        "exponents": {baseline: list(pair) for baseline, pair in grid.ranges.items()},
    }
    if path.is_file() and not retune:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["validation"] == validation:
            return saved["tuned"]
    result = tune(problem, grid, name)
    write_json(path, {"validation": validation, "tuned": result, **provenance()})
    return result


def baseline_path(name: str) -> Path:
    """Where the tuned rates of one problem are kept."""
    return RESULTS / "baselines" / f"{name}.json"
