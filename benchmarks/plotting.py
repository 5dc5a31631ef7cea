"""One look for all figures: log losses, median and quartiles, the learned rule on top."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.baselines import BASELINES
from benchmarks.paper.report import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEARNED = "#c8102e"
# Muted, and apart in lightness too, so that they survive greyscale and colour blindness.
_COLOURS = {
    "sgd": "#b8a24a",
    "momentum": "#7f6fb0",
    "nag": "#2a6f97",
    "adagrad": "#b07a9e",
    "rmsprop": "#6aa786",
    "adam": "#2b2d42",
    "default": "#e07b00",
    "learned-sub": "#7a0f4e",
    "learned-mnist": "#f2808f",
}
LONG = 500  # steps, from which on a curve is drawn in means, as a minibatch's noise would hide it
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "savefig.dpi": 110,
}


def colour(entry: str) -> str:
    """Of an entry that has its own, or, for any other, of the paper's learned rule."""
    return _COLOURS.get(entry, _LEARNED)


def _draw(axes: Axes, result: Mapping[str, Any]) -> None:
    """One case: baselines thin, the best baseline and the learned rule strong and banded."""
    best = result["metrics"]["final"]["best_baseline"]
    ours = [entry for entry in result["entries"] if entry not in BASELINES]
    first = "learned" if "learned" in ours else next(iter(ours), "")
    width = result["steps"] // 100 if result["steps"] >= LONG else 1
    for entry, facts in result["entries"].items():
        learned = entry not in BASELINES
        strong = entry in (first, best)
        axes.plot(
            *means(_numbers(facts["curve"]["median"]), width),
            color=colour(entry),
            linewidth=2.2 if strong else 1.1,
            linestyle=":" if learned and not strong else "-",
            zorder=4 if entry == first else 3 if strong else 2,
            label=label(entry) if entry != "learned" else "L2L, learned",
        )
        if strong:
            steps, lower = means(_numbers(facts["curve"]["lower"]), width)
            _, upper = means(_numbers(facts["curve"]["upper"]), width)
            axes.fill_between(steps, lower, upper, color=colour(entry), alpha=0.13, linewidth=0)
    axes.set_yscale("log")
    axes.set_xlim(0, result["steps"])
    axes.set_title(result["title"] + (f", means of {width} steps" if width > 1 else ""))


def means(values: Sequence[float], width: int) -> tuple[list[float], list[float]]:
    """Of so many consecutive values each, after where their middles lie; a rest is left out."""
    firsts = range(0, len(values) - width + 1, width)
    found = [statistics.fmean(values[first : first + width]) for first in firsts]
    return [first + (width - 1) / 2 for first in firsts], found


def _numbers(values: Sequence[float | None]) -> list[float]:
    """JSON has null for what is not finite."""
    return [math.nan if value is None else value for value in values]


def _limits(axes: Axes, result: Mapping[str, Any]) -> None:
    """Cut what lies far above the start: a diverging run would flatten all others."""
    curves = [facts["curve"] for facts in result["entries"].values()]
    start = max(curve["median"][0] for curve in curves)
    lower = [_numbers(curve["lower"]) for curve in curves]
    low = min(value for values in lower for value in values if math.isfinite(value))
    axes.set_ylim(max(low, 1e-8) * 0.8, start * 1.6)


def log_axes(axes: Axes, ticks: Sequence[float]) -> None:
    """Both logarithmic, with these numbers along the first."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.minorticks_off()


def _readable_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


@contextlib.contextmanager
def panels(path: Path, columns: int, size: tuple[float, float]) -> Iterator[list[Axes]]:
    """A row of axes to draw on, mostly logarithmic ones, written as a PNG in the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, grid = pyplot.subplots(1, columns, figsize=size, squeeze=False)
        yield list(grid[0])
        for axes in grid[0]:
            if axes.get_yscale() == "log":
                _readable_ticks(axes)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        pyplot.close(figure)


def loss_curves(results: Sequence[Mapping[str, Any]], path: Path, caption: str) -> None:
    """Small multiples of loss against step, one for each case, as a PNG.

    Args:
        results: what `benchmarks.paper.comparison.compare` returns.
        path: of the PNG.
        caption: one line under the figure.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # With its legend, a row of four; more than three cases make rows of three.
    columns = 1 if len(results) == 1 else len(results) + 1 if len(results) <= 3 else 3
    rows = -(-(len(results) + (len(results) > 1)) // columns)
    with pyplot.rc_context(STYLE):
        size = (3.3 * columns, 2.8 * rows + 0.2) if len(results) > 1 else (5.6, 3.8)
        figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
        panels = list(grid.flat)
        for axes, result in zip(panels, results, strict=False):
            _draw(axes, result)
            _limits(axes, result)
            _readable_ticks(axes)
            axes.set_xlabel("step")
        for row in grid:
            row[0].set_ylabel("loss")
        handles, labels = panels[0].get_legend_handles_labels()
        spare = panels[len(results) :]
        for axes in spare:
            axes.axis("off")
        (spare[0] if spare else panels[0]).legend(
            handles, labels, loc="center left" if spare else "best", ncols=1 if spare else 2
        )
        figure.text(0.01, 0.005, caption, fontsize=7, color="#666666")
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        pyplot.close(figure)
