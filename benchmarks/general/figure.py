"""The picture of `benchmarks.generalization`: a profile, and every problem on its own line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.general.scores import log_ratio, profile
from benchmarks.general.store import LABELS, MEAN, PLAIN_ADAM, TOLD, Record
from benchmarks.plotting import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RULE = "rule"
_LEARNED = "#c8102e"
# Muted, and apart in lightness too, as in `plotting`.
_LOOKS: dict[str, tuple[str, str, float]] = {
    RULE + TOLD: (_LEARNED, "-", 2.4),
    RULE + MEAN: (_LEARNED, ":", 2.0),
    RULE: (_LEARNED, "--", 2.0),
    "hand" + TOLD: ("#d98a94", ":", 1.6),
    "muon_cosine": ("#2b2d42", "-", 1.6),
    "adamw_cosine": ("#2a6f97", "-", 1.6),
    "adam": ("#6aa786", "-", 1.6),
    "momentum_cosine": ("#7f6fb0", "-", 1.1),
    PLAIN_ADAM: ("#b8a24a", "-.", 1.1),
    "prodigy": ("#b07a9e", "-.", 1.1),
    "schedule_free": ("#999999", "-.", 1.1),
}
_MARKS = ("adamw_cosine", "muon_cosine", RULE, RULE + MEAN, RULE + TOLD)
_FILLED = {RULE: "white", RULE + MEAN: "#f0b6bf"}
_FACTORS = [10 ** (k / 60) for k in range(61)]
# How far an axis of factors reaches either way, and its ticks above 1.
_SPANS: dict[float, tuple[float, ...]] = {3.5: (1.5, 2, 3), 11.0: (3, 10)}


def _label(key: str, name: str) -> str:
    known = {
        RULE: name,
        RULE + TOLD: f"{name}, total_steps told",
        RULE + MEAN: f"{name}, within averaged()",
        "hand" + TOLD: "hand rule, told",
    }
    return known.get(key) or LABELS[key]


def _profile(axes: Axes, records: Mapping[str, Record], keys: list[str], name: str) -> None:
    """Share of the problems within a factor of the best of all that are shown."""
    for key in keys:
        colour, dash, width = _LOOKS[key]
        shares = [profile(records, key, keys, factor) for factor in _FACTORS]
        axes.plot(
            _FACTORS,
            shares,
            color=colour,
            linestyle=dash,
            linewidth=width,
            drawstyle="steps-post",
            label=_label(key, name),
            zorder=4 if key.startswith(RULE) else 2,
        )
    axes.set_xscale("log")
    axes.set_xlim(1, 10)
    axes.set_ylim(0, 1.02)
    axes.set_xticks([1, 1.5, 2, 3, 5, 10], ["1", "1.5", "2", "3", "5", "10"])
    axes.minorticks_off()
    axes.set_xlabel("final training loss, factor over the best")
    axes.set_ylabel("share of the problems within it")
    axes.set_title("profile: higher and further left is better")
    axes.legend(fontsize=7, loc="lower right")


def _problems(axes: Axes, records: Mapping[str, Record], keys: list[str], name: str) -> None:
    """Each problem's ratios to tuned Adam; to the left of the line is better."""
    axes.axvline(1, color=_LOOKS["adam"][0], linewidth=1.6, zorder=1)
    shown = {
        key: [math.exp(log_ratio(record, key, "adam") or 0) for record in records.values()]
        for key in _MARKS
        if key in keys
    }
    for key, ratios in shown.items():
        colour, _, _ = _LOOKS[key]
        axes.scatter(
            ratios,
            range(len(ratios)),
            s=40 if key.startswith(RULE) else 14,
            marker="o" if key.startswith(RULE) else "D",
            facecolors=_FILLED.get(key, colour),
            edgecolors=colour,
            linewidths=1.4,
            label=_label(key, name),
            zorder=4 if key.startswith(RULE) else 2,
        )
    axes.set_xscale("log")
    most = max(max(ratio, 1 / ratio) for ratios in shown.values() for ratio in ratios)
    span = next((span for span in _SPANS if span > most), max(_SPANS))
    axes.set_xlim(1 / span, span)
    ticks = [*(1 / tick for tick in reversed(_SPANS[span])), 1, *_SPANS[span]]
    axes.set_xticks(ticks, [f"{tick:.2g}" if tick >= 0.4 else f"{tick:.1g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(records)), [item.replace("_", " ") for item in records], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("final training loss over that of Adam at its best rate")
    axes.set_title("problem by problem")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2)


def draw(records: Mapping[str, Record], name: str, path: Path) -> None:
    """Write the picture as a PNG.

    Args:
        records: problem -> record with the entries of baselines and rule.
        name: of the rule.
        path: of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    present = set.intersection(*(set(record["entries"]) for record in records.values()))
    keys = [key for key in _LOOKS if key in present]
    with pyplot.rc_context(STYLE):
        height = 1.9 + 0.2 * max(14, len(records))
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, height))
        _profile(left, records, keys, name)
        _problems(right, records, keys, name)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        pyplot.close(figure)
