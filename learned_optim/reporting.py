"""What the demo and `compare` say alike: numbers as text and JSON, verdicts, curves."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import torch

from learned_optim import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Losses within a factor e^LEVEL of each other count as the same.
LEVEL = 0.02
SMALL = 0.095  # from here down two decimals say too little


def finite(value: float) -> float | None:
    """JSON has no infinity and no NaN: None stands for a run that diverged."""
    return value if math.isfinite(value) else None


def against(mine: float, other: float, name: str) -> str:
    """`beats NAME (0.50 times its loss)` and the like, of two final losses."""
    if not math.isfinite(mine):
        return (
            f"loses to {name} (it diverged)" if math.isfinite(other) else f"diverged, like {name}"
        )
    if not math.isfinite(other):
        return f"beats {name}, which diverged"
    if mine == other:
        return f"is level with {name}"
    word = "beats" if mine < other else "loses to"
    if min(mine, other) <= 0:  # a ratio would mean nothing
        return f"{word} {name} ({mine:.4g} against {other:.4g})"
    if abs(math.log(mine / other)) < LEVEL:
        return f"is level with {name}"
    return f"{word} {name} ({times(mine / other)} times its loss)"


def times(factor: float) -> str:
    """Two decimals, or two digits where there are none: `0.50`, `12.31`, `0.0094`."""
    return f"{factor:.2f}" if not factor < SMALL else f"{factor:.2g}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def ready(folder: Path) -> None:
    """Make the report's folder, before runs whose results would be lost without it.

    Raises:
        OSError: no file can be written there.
        ModuleNotFoundError: matplotlib, which draws the picture, is not installed.
    """
    import matplotlib.figure  # noqa: F401

    folder.mkdir(parents=True, exist_ok=True)
    TemporaryFile(dir=folder).close()


def save(folder: Path, name: str, content: Mapping[str, object], figure: Figure) -> None:
    """Write `<name>.json` and `<name>.png`; a run that is killed leaves those of the last one.

    Raises:
        OSError: naming the file that cannot be written.
        ValueError: a number in `content` is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150)
    files.write(folder / f"{name}.json", text.encode())
    files.write(folder / f"{name}.png", picture.getvalue())


def scale(values: Iterable[float]) -> str:
    """`log` for an axis whose finite values are all positive, else `linear`."""
    shown = [value for value in values if math.isfinite(value)]
    return "log" if shown and min(shown) > 0 else "linear"


def draw_band(
    axes: Axes, steps: Sequence[int], curves: Sequence[Sequence[float]], color: str, label: str
) -> None:
    """The median of several runs' curves, and the band between their extremes."""
    values = torch.tensor(curves, dtype=torch.float64)
    low, high = values.amin(0), values.amax(0)
    axes.plot(steps, values.quantile(0.5, dim=0), color=color, label=label, lw=1.8)
    axes.fill_between(steps, low, high, color=color, alpha=0.18, lw=0)


def plain(axes: Axes) -> None:
    """Take off the frame, and add a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", lw=0.6)
