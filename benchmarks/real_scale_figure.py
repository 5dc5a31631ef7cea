"""The picture of `benchmarks.real_scale`: loss against step, smoothed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.plotting import STYLE

_LEARNED = "#c8102e"
# By how names begin, the first that fits; more rates than colours begin again.
_COLOURS = {
    "adamw_warm": ("#f0d9a8", "#d9a441", "#8e6bb0", "#4b2e63"),
    "adamw": ("#a8c3b0", "#6aa786", "#2a6f97", "#2b2d42"),
    "muon": ("#c9c9c9", "#9a9a9a", "#5c5c5c", "#111111"),
    "prodigy": ("#d9a0c4", "#a0568a"),
}
_SPAN = 40  # the curve is cut into as many means as steps hold this, at least


def smoothed(losses: list[float]) -> tuple[list[float], list[float]]:
    """Middles of windows, and the means over them."""
    width = max(1, len(losses) // _SPAN)
    starts = range(0, len(losses) - width + 1, width)
    means = [sum(losses[start : start + width]) / width for start in starts]
    return [start + width / 2 for start in starts], means


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Write the PNG.

    Args:
        content: what the results file holds.
        path: of the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shades = {start: itertools.cycle(colours) for start, colours in _COLOURS.items()}
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(9.0, 4.0))
        for key, run in content["runs"].items():
            learned = key.startswith("default")
            steps, means = smoothed(run["losses"])
            shade = next((each for start, each in shades.items() if key.startswith(start)), None)
            axes.plot(
                steps,
                means,
                color=next(shade) if shade else _LEARNED,
                linestyle="--" if key == "default" else "-",
                linewidth=2.2 if learned else 1.3,
                label=f"{run['label']}: {run['final_loss']:.3f}, test {run['test_loss']:.3f}",
            )
        axes.set_xlabel("step")
        axes.set_ylabel("training loss, nats a character")
        axes.set_title(f"Shakespeare, {content['parameters'] / 1e6:.1f} million parameters")
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        pyplot.close(figure)
