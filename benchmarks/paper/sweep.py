"""The MNIST rule on networks of other widths and depths than the one that it was trained on.

    python -m benchmarks.paper.sweep             every size that the JSON lacks, ten minutes in all
    python -m benchmarks.paper.sweep --redraw    the table and the picture from the JSON

Section 3.2 of the paper, whose appendix shows final losses for several widths and depths: the rule
of one hidden layer of 20 units, without retraining. Beside it stand Adam and Nesterov's momentum at
the best of eight rates, half a decade apart, chosen for each size with hindsight on these very
runs. Writes results/paper_sweep.json and .png after every size.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper import report
from benchmarks.paper.hindsight import complete, finals
from benchmarks.plotting import colour, log_axes, panels
from benchmarks.runs import Problem
from learned_optim.tasks import MnistMLP
from learned_optim.weights import LoadedRule, load_bundled

WIDTHS, DEPTHS = (5, 10, 20, 40), (1, 2, 3)
RUNS, STEPS, BLOCK = 20, 100, 4
RATES = {
    "adam": tuple(10 ** (-3.5 + k / 2) for k in range(8)),
    "nag": tuple(10 ** (-2.5 + k / 2) for k in range(8)),
}


def examine(width: int, depth: int, rule: LoadedRule) -> dict[str, Any]:
    """One size: final losses of the rule and of each baseline at its best rate."""
    task = MnistMLP(hidden=width, layers=depth).sample(torch.Generator())
    problem = Problem(task, RUNS, STEPS, "sweep", BLOCK)
    found = finals(problem, rule, RATES, f"{depth} x {width}")
    return {"width": width, "depth": depth, **found}


def measure(path: Path) -> None:
    """Run the sizes that `path` lacks for today's weights."""
    rule = load_bundled("l2l-mnist")
    sizes = {
        f"{depth}x{width}": partial(examine, width, depth, rule)
        for depth in DEPTHS
        for width in WIDTHS
    }
    complete(path, "sizes", rule, sizes)


def ratio(size: Mapping[str, Any]) -> float:
    """The rule's mean final loss, infinite if a run diverged, over that of the better baseline."""
    entries = size["entries"]
    learned = entries["learned"]["mean"]
    best = min(entries[key]["mean"] for key in RATES)
    return float("inf") if learned is None else learned / best


def show(content: Mapping[str, Any]) -> None:
    """Print a line for each size."""
    print(f"{'layers x units':>16}{'learned':>10}{'Adam':>10}{'NAG':>10}{'ratio':>8}")
    for size in content["sizes"].values():
        cells = [report.number(size["entries"][key]["mean"]) for key in ("learned", *RATES)]
        row = "".join(f"{cell:>10}" for cell in cells)
        print(f"{size['depth']:>11} x {size['width']:<2}{row}{ratio(size):8.2f}")


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Final loss against width, a panel for each depth, with 95 % intervals."""
    with panels(path, len(DEPTHS), (9.0, 3.2)) as row:
        for axes, depth in zip(row, DEPTHS, strict=True):
            sizes = [size for size in content["sizes"].values() if size["depth"] == depth]
            widths = [size["width"] for size in sizes]
            for key in (*RATES, "learned"):
                facts = [size["entries"][key] for size in sizes]
                middle = [fact["mean"] for fact in facts]
                low, high = zip(*(fact["interval_95"] for fact in facts), strict=True)
                name = "L2L, learned" if key == "learned" else report.label(key)
                axes.plot(widths, middle, "o-", color=colour(key), markersize=4, label=name)
                axes.fill_between(widths, low, high, color=colour(key), alpha=0.15, linewidth=0)
            axes.axvline(20, color="grey", linewidth=0.8, linestyle=":")
            axes.set_title(f"{depth} hidden layer{'s' if depth > 1 else ''}")
            axes.set_xlabel("units a layer")
            log_axes(axes, WIDTHS)
        limits = [axes.get_ylim() for axes in row]
        for axes in row:
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        row[0].set_ylabel(f"loss at step {STEPS}")
        row[0].legend(fontsize=8)


def main() -> None:
    report.script(__doc__ or "", "paper_sweep", measure, draw, show, resumes=True)


if __name__ == "__main__":
    main()
