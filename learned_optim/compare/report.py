"""What a comparison says: the table, the verdict, the picture and the numbers."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

from learned_optim.compare.training import Contender, Run, points
from learned_optim.reporting import against, aligned, draw_band, finite, plain, save, scale
from learned_optim.weights import LoadedRule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#d1495b", "#8f2d56", "#b8bfca", "#5c80bc", "#1d3557")
AT_MEAN = "#e8a0a8"  # of the entry that is not always there, the second


@dataclass(frozen=True)
class Entry:
    """A contender's runs, one for each seed.

    Attributes:
        contender: the optimizer.
        runs: what was recorded.
        grid: of a tuned one: rate -> median final value on the tuning seeds.
    """

    contender: Contender
    runs: Sequence[Run]
    grid: dict[float, float] = field(default_factory=dict)

    @property
    def final(self) -> float:
        """Median over the seeds."""
        return median(run.final for run in self.runs)

    @property
    def seconds(self) -> float:
        """Median over the seeds, of one run."""
        return median(run.seconds for run in self.runs)

    @property
    def edge(self) -> bool:
        """Whether the best rate is the first or the last that was tried."""
        best = min(self.grid, key=lambda rate: self.grid[rate], default=None)
        return best is not None and best in (min(self.grid), max(self.grid))


@dataclass(frozen=True)
class Report:
    """The whole result.

    Attributes:
        model: the factory's name.
        steps: of each run.
        rule: of LearnedOptimizer.
        entries: LearnedOptimizer, the same within `averaged` (only where something is evaluated and
            the rule has a mean), told the horizon; Adam's default, then Adam's best constant rate
            and its best rate with a cosine.
        tuning_runs: runs for each rate of the grids.
        folder: where `write` puts the files.
    """

    model: str
    steps: int
    rule: LoadedRule
    entries: Sequence[Entry]
    tuning_runs: int
    folder: Path

    @property
    def text(self) -> str:
        """The table and the verdict."""
        seeds = len(self.entries[0].runs)
        head = (
            f"{self.model}, {self.steps} steps, rule {self.rule.name}: median of {seeds} "
            f"seed{'s' * (seeds > 1)}"
        )
        return f"{head}\n{aligned(self.rows())}\n\n{self.verdict()}"

    def rows(self) -> list[list[str]]:
        """The table's cells, header first."""
        best = min(entry.final for entry in self.entries)
        table = [["", "final", "lowest", "highest", "/ best", "seconds", "runs to tune"]]
        for entry in self.entries:
            finals = [run.final for run in entry.runs]
            # Where the best is not positive, or not there, a ratio would mean nothing.
            ratio = f"{entry.final / best:.2f}" if 0 < best < math.inf else "-"
            numbers = [f"{value:.4g}" for value in (entry.final, min(finals), max(finals))]
            tuning = len(entry.grid) * self.tuning_runs
            table.append(
                [
                    entry.contender.name,
                    *numbers,
                    ratio,
                    f"{entry.seconds:.1f}",
                    str(tuning),
                ]
            )
        return table

    def verdict(self) -> str:
        """Where each LearnedOptimizer stands, and what the tuning cost; a line each."""
        learned, *at_mean, told, default, constant, cosine = self.entries
        lines = [
            f"LearnedOptimizer {against(learned.final, default.final, default.contender.name)}, "
            f"and {against(learned.final, constant.final, 'the best constant rate')}.",
            "Told total_steps, it "
            f"{against(told.final, cosine.final, 'the best rate with a cosine')}.",
        ]
        lines += [
            "Not told but within averaged(), it "
            f"{against(entry.final, cosine.final, 'the best rate with a cosine')}."
            for entry in at_mean
        ]
        tuned = constant.seconds * len(constant.grid) + cosine.seconds * len(cosine.grid)
        lines.append(
            f"Finding the two best rates took {len(constant.grid) + len(cosine.grid)} rates x "
            f"{self.tuning_runs} runs, about {tuned * self.tuning_runs:.0f} s; LearnedOptimizer "
            f"took {learned.seconds:.1f} s a run, Adam {default.seconds:.1f} s."
        )
        lines += [
            f"The best rate of '{entry.contender.name}' is at the edge of what was tried."
            for entry in self.entries
            if entry.edge
        ]
        return "\n".join(lines)

    def write(self) -> None:
        """Write `compare.json` and `compare.png`."""
        save(self.folder, "compare", self.as_json(), self._picture())

    def as_json(self) -> dict[str, object]:
        """Everything recorded, as plain values; null where a run diverged."""
        return {
            "model": self.model,
            "steps": self.steps,
            "points": points(self.steps),
            "rule": self.rule.name,
            "sha256": self.rule.sha256,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "tuning_runs": self.tuning_runs,
            "entries": [
                {
                    "name": entry.contender.name,
                    "final": finite(entry.final),
                    "grid": [
                        {"rate": rate, "final": finite(value)} for rate, value in entry.grid.items()
                    ],
                    "runs": [
                        {"curve": [finite(value) for value in run.curve], "seconds": run.seconds}
                        for run in entry.runs
                    ],
                }
                for entry in self.entries
            ],
        }

    def _picture(self) -> Figure:
        # The object interface, not pyplot: no global state, no display needed.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10.4, 4.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        values = [value for entry in self.entries for run in entry.runs for value in run.curve]
        searched = [
            value for entry in self.entries for value in (entry.final, *entry.grid.values())
        ]
        colors = [*COLORS[:1], *[AT_MEAN] * (len(self.entries) > len(COLORS)), *COLORS[1:]]
        for entry, color in zip(self.entries, colors, strict=True):
            curves = [[_shown(value) for value in run.curve] for run in entry.runs]
            draw_band(left, points(self.steps), curves, color, entry.contender.name)
            if entry.grid:
                finals = [_shown(value) for value in entry.grid.values()]
                right.plot(list(entry.grid), finals, "o-", color=color, label=entry.contender.name)
            else:
                right.axhline(_shown(entry.final), color=color, label=entry.contender.name, lw=1.4)
        left.set(xlabel="step", ylabel="loss", title="Median and range over seeds")
        left.set_yscale(scale(values))
        right.set(xlabel="Adam's rate", xscale="log", title="The search")
        right.set_yscale(scale(searched))
        for axes in (left, right):
            plain(axes)
        names, labels = left.get_legend_handles_labels()
        figure.legend(
            names, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small"
        )
        return figure


def _shown(value: float) -> float:
    """Curves that leave the finite leave the picture."""
    return value if math.isfinite(value) else math.nan
