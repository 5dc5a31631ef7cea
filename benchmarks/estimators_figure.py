"""The picture of `benchmarks.estimators`: the page that compares the estimators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.plotting import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "tbptt": "#2a6f97",
    "2nd": "#2b2d42",
    "es": "#b8a24a",
    "pes": "#6aa786",
    "nres": "#c8102e",
}
SECONDS = [10 ** (k / 10) for k in range(-20, 31)]


def colour(name: str) -> str:
    """Of an estimator, by its family."""
    return COLOURS["2nd" if name.endswith("2nd") else name.split()[0]]


def dash(name: str, names: list[str]) -> str:
    """A line style that tells apart the windows of one family."""
    family = [other for other in names if colour(other) == colour(name)]
    return ("-", "--", ":")[family.index(name) % 3]


def _means(axes: Axes, bowl: Mapping[str, Any]) -> None:
    """Mean and two standard errors, with both truths as lines."""
    names = list(bowl["rows"])
    for place, name in enumerate(names):
        row = bowl["rows"][name]
        axes.errorbar(
            row["mean"],
            place,
            xerr=2 * row["standard_error_of_mean"],
            fmt="o",
            color=colour(name),
            capsize=3,
        )
    axes.axvline(bowl["exact"], color="#555555", linewidth=1, label="exact")
    axes.axvline(bowl["smoothed"], color="#555555", linewidth=1, linestyle=":", label="smoothed")
    axes.axvline(0, color="#cccccc", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("mean estimate, two standard errors")
    axes.set_title("bowl: against the formula")
    axes.legend(fontsize=7, loc="best")


def _plane(axes: Axes, case: Mapping[str, Any]) -> None:
    """Bias against the variance that a second buys; no measurable bias: an open mark at 2 s.e."""
    for place, (name, row) in enumerate(case["rows"].items()):
        seen = row["bias_seen"]
        height = row["bias"] if seen else 2 * row["standard_error"]
        axes.plot(
            row["variance_second"],
            height,
            "o" if seen else "v",
            color=colour(name),
            markerfacecolor=colour(name) if seen else "white",
        )
        axes.annotate(
            name,
            (row["variance_second"], height),
            textcoords="offset points",
            xytext=(5, 4 if place % 2 else -10),
            fontsize=7,
            color=colour(name),
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.22)
    axes.set_xlabel("variance x CPU seconds of an episode")
    axes.set_ylabel("bias (hollow: none seen, below about this)", fontsize=8)
    axes.set_title("quadratic: bias and variance")


def _budget(axes: Axes, case: Mapping[str, Any]) -> None:
    """Root mean square error of the mean of all episodes that fit into a budget.

    Faint below the standard error of the measurement, where an unseen bias may hide.
    """
    names = list(case["rows"])
    for name, row in case["rows"].items():
        bias = row["bias"] if row["bias_seen"] else 0.0
        error = [(bias**2 + row["variance_second"] / t) ** 0.5 for t in SECONDS]
        known = [value if value > row["standard_error"] else float("nan") for value in error]
        style = {"color": colour(name), "linestyle": dash(name, names), "linewidth": 1.6}
        axes.plot(SECONDS, error, alpha=0.25, **style)
        axes.plot(SECONDS, known, label=name, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("CPU seconds spent on one meta-gradient\n(faint: beyond what was measured)")
    axes.set_ylabel("relative error", fontsize=8)
    axes.set_title("quadratic: error for a budget")
    axes.legend(fontsize=6.5, ncols=2)


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Means on the bowl; bias and variance, and error for a budget, on the quadratics."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(1, 3, figsize=(12.4, 4.0))
        _means(panels[0], content["bowl"])
        _plane(panels[1], content["quadratic"])
        _budget(panels[2], content["quadratic"])
        case = content["quadratic"]
        caption = (
            f"errors relative to the length of the true meta-gradient; quadratic: "
            f"{case['meta_parameters']} meta-parameters, {case['steps']} inner steps; one thread, "
            f"{content['hardware']['processor']}"
        )
        figure.text(0.01, 0.01, caption, fontsize=7, color="#666666")
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        pyplot.close(figure)
