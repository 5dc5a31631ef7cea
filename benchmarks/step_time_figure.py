"""The picture of what a step costs: `default` as it ships by networks, others by their sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.plotting import STYLE, colour
from benchmarks.step_contenders import BARE, MUON, SHIPPED, SHIPPED_ALONE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASE = "Adam foreach"
BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # above the lines of limits
# Of the upper panel: contender -> what it is called there, and its colour.
USED = {
    BASE: ("Adam, foreach", colour("adam")),
    MUON: ("Muon, AdamW on the rest", colour("nag")),
    BARE: ("default, no matrix stage", "#f2808f"),
    SHIPPED: ("default", colour("learned")),
    SHIPPED_ALONE: ("default, no kernels", "#8a8fa3"),
}
NETWORKS = {
    "transformer": "transformer\n5M in 76 tensors",
    "mlp": "MNIST network\n102k in 4 tensors",
    "width 128": "12 matrices of 128\n198k in 24 tensors",
    "width 64": "24 matrices of 64\n100k in 48 tensors",
    "small mlp": "small network\n9k in 6 tensors",
    "1M": "one vector\n1M",
}


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Both rows, with one thread."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in content["rows"] if row["threads"] == 1]
    with pyplot.rc_context(STYLE):
        plot = pyplot.figure(figsize=(13, 7.2), layout="constrained")
        grid = plot.add_gridspec(2, 3)
        by_network(plot.add_subplot(grid[0, :]), rows)
        million = [row for row in rows if row["case"] == "1M"]
        panels = [plot.add_subplot(grid[1, place]) for place in range(3)]
        for axes, (size, limits) in zip(panels, content["limits"].items(), strict=True):
            by_size(axes, million, size, limits)
        plot.legend(*panels[0].get_legend_handles_labels(), ncol=3, loc="outside lower center")
        plot.savefig(path, dpi=120, metadata={"Software": None})
        pyplot.close(plot)


def by_network(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """What people use, beside each other: times Adam."""
    width = 0.8 / len(USED)
    for place, (contender, (name, shade)) in enumerate(USED.items()):
        found = {row["case"]: row for row in rows if row["contender"] == contender}
        heights = [found[case]["times_adam_foreach"] for case in NETWORKS]
        at = [index + (place - (len(USED) - 1) / 2) * width for index in range(len(NETWORKS))]
        bars = axes.bar(at, heights, width, color=shade, label=name)
        axes.bar_label(bars, [f"{height:.2g}" for height in heights], fontsize=7, padding=1)
    axes.set_yscale("log")
    axes.axhline(1, color=colour("adam"), linewidth=0.8)
    axes.set_xticks(range(len(NETWORKS)), list(NETWORKS.values()))
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("time of a step, in steps of Adam")
    axes.set_title("default as it ships, on one thread")
    axes.legend(ncol=len(USED), loc="upper center", bbox_to_anchor=(0.5, 1.16))


def by_size(
    axes: Axes, rows: Sequence[Mapping[str, Any]], size: str, limits: Mapping[str, float]
) -> None:
    """Rules with networks that speak, of a size: ns a parameter; Adam and the limits as lines."""
    adam = next(row for row in rows if row["contender"] == BASE)["ns_per_parameter"]
    shown = [row for row in rows if row["size"] and str(tuple(row["size"])) == size]
    values = [row["ns_per_parameter"] for row in shown]
    compiled = [row["contender"].startswith("C++") for row in shown]
    shades = [colour("learned") if c else "#8a8fa3" for c in compiled]
    bars = axes.barh([row["contender"] for row in shown], values, color=shades)
    axes.bar_label(bars, [f"{v / adam:.1f}x" for v in values], fontsize=7, padding=3, bbox=BOX)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(1, 6 * max(values))
    axes.axvline(adam, color=colour("adam"), linewidth=1, label="Adam, foreach")
    for kind, style in (("arithmetic", "--"), ("memory", ":")):
        limit, label = limits[f"{kind}_ns"], f"{kind} alone, estimate"
        axes.axvline(limit, color=colour("nag"), linestyle=style, linewidth=1, label=label)
    axes.set_title(f"an LSTM of {size[1:-1].replace(', ', ' x ')} units (x: times Adam)")
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("ns a parameter, of a million")
