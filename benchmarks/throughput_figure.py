"""The picture of `benchmarks.meta_training_throughput`: a column for each estimator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.plotting import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {
    "tbptt": "truncated backpropagation",
    "tbptt_second": "with second derivatives",
    "nres": "evolution strategies",
}
NAMES = {"eager": "plain PyTorch loop", "torch": "this package, no kernels", "kernels": "kernels"}
COLOURS = {"eager": "#8a8fa3", "torch": "#2a6f97", "kernels": "#c8102e"}
Rows = Iterable[Mapping[str, Any]]


def _bars(axes: Axes, rows: Rows) -> None:
    """The two networks, a bar for each contender, and how many times as fast it is."""
    rows = list(rows)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    present = [name for name in NAMES if any(row["contender"] == name for row in rows)]
    width = 0.8 / len(present)
    for row in rows:
        place = tasks.index(row["task"]) + width * (
            present.index(row["contender"]) - (len(present) - 1) / 2
        )
        axes.bar(place, row["ms"], 0.92 * width, color=COLOURS[row["contender"]])
        axes.annotate(
            f"{row['times_faster']:.1f}x",
            (place, row["ms"]),
            textcoords="offset points",
            xytext=(0, 2),
            ha="center",
            fontsize=7,
            color=COLOURS[row["contender"]],
        )
    copies = {row["task"]: row["optimizees"] for row in rows}
    axes.set_xticks(range(len(tasks)), [f"{task}\n{copies[task]} at once" for task in tasks])
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.grid(visible=False, axis="x")


def _curves(axes: Axes, rows: Rows, key: str) -> None:
    rows = list(rows)
    for name, colour in COLOURS.items():
        shown = [row for row in rows if row["contender"] == name]
        if not shown:
            continue
        places = [row[key] for row in shown]
        axes.plot(places, [row["ms"] for row in shown], "o-", color=colour, linewidth=1.8, ms=3.5)
        last = max(row[key] for row in rows)
        if places[-1] < last:  # one run after the other: flat, and not measured further
            axes.plot([places[-1], last], [shown[-1]["ms"]] * 2, ":", color=colour, linewidth=1.4)
    axes.set_xscale("log")
    axes.set_yscale("log")


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Bars of the two networks, then cost against runs, then cost against coordinates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    with pyplot.rc_context(STYLE):
        figure, grid = pyplot.subplots(3, 3, figsize=(9.6, 8.2), sharey="row")
        for column, (estimator, title) in enumerate(TITLES.items()):
            rows = {
                group: [row for row in content[group] if row["estimator"] == estimator]
                for group in ("headline", "runs", "coordinates")
            }
            _bars(grid[0][column], rows["headline"])
            _curves(grid[1][column], rows["runs"], "optimizees")
            _curves(grid[2][column], rows["coordinates"], "coordinates")
            grid[0][column].set_title(title, fontweight="bold")
            grid[1][column].set_xlabel("optimizees side by side (quadratic, 10 coordinates)")
            grid[2][column].set_xlabel("coordinates (784-h-10, one window of one run)")
            for row in (1, 2):
                grid[row][column].xaxis.label.set_fontsize(8)
        for row in grid:
            row[0].set_ylabel("CPU ms an inner step and optimizee", fontsize=8)
        handles = [Patch(color=COLOURS[name], label=NAMES[name]) for name in NAMES]
        figure.legend(handles=handles, loc="lower right", ncols=3, fontsize=8)
        versions, hardware = content["versions"], content["hardware"]
        caption = f"LSTM 2 x 20, one thread, torch {versions['torch']}, {hardware['processor']}"
        figure.text(0.01, 0.008, caption, fontsize=7, color="#666666")
        figure.tight_layout(rect=(0, 0.035, 1, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        pyplot.close(figure)
