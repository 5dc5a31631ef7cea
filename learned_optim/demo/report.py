"""What the demo says: the table, the verdict, the picture and the numbers."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

from learned_optim.demo.digits import HIDDEN, Run, Training
from learned_optim.reporting import against, aligned, draw_band, finite, plain, save, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#d1495b", "#8d99ae", "#1d3557")
# The step at which the table shows a loss before the last.
EARLY = 100


@dataclass(frozen=True)
class Contender:
    """One optimizer's runs on one network, one for each seed."""

    name: str
    runs: Sequence[Run]

    @property
    def final_loss(self) -> float:
        """Median final training loss."""
        return median(run.final_loss for run in self.runs)

    def over_seeds(self, pick: Callable[[Run], float]) -> float:
        """Median over the seeds of one number of each run."""
        return median(pick(run) for run in self.runs)


@dataclass(frozen=True)
class Network:
    """All contenders on one network: LearnedOptimizer, Adam's default, Adam's best rate.

    Attributes:
        activation: its nonlinearity.
        training: the length of the runs and where they were evaluated.
        grid: Adam's rate -> median final training loss on the tuning seeds.
        contenders: in the order above.
    """

    activation: str
    training: Training
    grid: dict[float, float]
    contenders: Sequence[Contender]

    @property
    def title(self) -> str:
        """The network in a few words."""
        return f"digits, 64-{HIDDEN}-10, {self.activation}"

    def ratio(self, contender: Contender) -> float:
        """Final training loss over that of Adam at its best rate; under 1 is better."""
        best = self.contenders[-1].final_loss
        return contender.final_loss / best if best > 0 else math.nan

    def edge_note(self) -> str:
        """A warning where the best rate is the first or last of the grid, else empty."""
        rates = list(self.grid)
        best = min(rates, key=lambda rate: self.grid[rate])
        if best not in (rates[0], rates[-1]):
            return ""
        return f"Adam's best rate {best:.2g} is at the edge of its grid: a wider one may do better."

    def verdict(self) -> str:
        """Where LearnedOptimizer stands against both of Adam's, in one sentence."""
        learned, default, best = self.contenders
        return (
            f"{self.activation}: after {self.training.steps} steps LearnedOptimizer "
            f"{against(learned.final_loss, default.final_loss, 'Adam at its default rate')} and "
            f"{against(learned.final_loss, best.final_loss, 'Adam at its best rate')}."
        )

    def rows(self) -> list[list[str]]:
        """The table's cells, header first."""
        evaluated = self.training.evaluated
        early = min(range(len(evaluated)), key=lambda index: abs(evaluated[index] - EARLY))
        losses = [f"loss at {evaluated[early]}", f"loss at {evaluated[-1]}"]
        table = [["", *losses, "/ best Adam", "test accuracy", "seconds"]]
        for contender in self.contenders:
            at_early = contender.over_seeds(partial(_loss_at, early))
            accuracy = contender.over_seeds(lambda run: run.test_accuracy[-1])
            seconds = contender.over_seeds(lambda run: run.seconds)
            losses = [f"{at_early:.3g}", f"{contender.final_loss:.3g}"]
            ratio = times(self.ratio(contender))
            table.append([contender.name, *losses, ratio, f"{accuracy:.1%}", f"{seconds:.1f}"])
        return table

    def as_json(self) -> dict[str, object]:
        """Everything recorded, as plain values."""
        return {
            "activation": self.activation,
            "hidden": HIDDEN,
            "batch_size": self.training.batch_size,
            "evaluated_at": self.training.evaluated,
            "adam_grid": [
                {"rate": rate, "median_final_loss": finite(loss)}
                for rate, loss in self.grid.items()
            ],
            "contenders": [
                {
                    "name": contender.name,
                    "ratio_to_best_adam": finite(self.ratio(contender)),
                    "runs": [
                        {
                            "train_loss": [finite(value) for value in run.train_loss],
                            "test_accuracy": run.test_accuracy,
                            "seconds": run.seconds,
                        }
                        for run in contender.runs
                    ],
                }
                for contender in self.contenders
            ],
        }


def _loss_at(index: int, run: Run) -> float:
    return run.train_loss[index]


@dataclass(frozen=True)
class Report:
    """The whole result.

    Attributes:
        networks: one comparison each.
        rule: name of LearnedOptimizer.
        sha256: of its weight file.
        folder: where `write` puts the files.
    """

    networks: Sequence[Network]
    rule: str
    sha256: str
    folder: Path

    @property
    def text(self) -> str:
        """The tables and the verdicts."""
        blocks = []
        for network in self.networks:
            seeds = len(network.contenders[0].runs)
            head = f"{network.title}: medians of {seeds} seeds, loss on the whole training set"
            blocks.append(f"{head}\n{aligned(network.rows())}")
        sentences = [network.verdict() for network in self.networks]
        sentences += [note for network in self.networks if (note := network.edge_note())]
        return "\n\n".join(blocks) + "\n\n" + "\n".join(sentences)

    def write(self) -> None:
        """Write `digits.json` and `digits.png`."""
        content = {
            "rule": self.rule,
            "sha256": self.sha256,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "networks": [network.as_json() for network in self.networks],
        }
        save(self.folder, "digits", content, self._picture())

    def _picture(self) -> Figure:
        # The object interface, not pyplot: no global state, no display needed.
        from matplotlib.figure import Figure

        columns = len(self.networks)
        figure = Figure(figsize=(5.2 * columns, 6.4), layout="constrained")
        axes = figure.subplots(2, columns, sharex="col", squeeze=False)
        for column, network in enumerate(self.networks):
            upper, lower = axes[:, column]
            _curves(upper, network, lambda run: run.train_loss)
            _curves(lower, network, lambda run: [100 * value for value in run.test_accuracy])
            upper.set(title=network.title, yscale="log", ylabel="training loss")
            lower.set(xlabel="step", ylabel="test accuracy, %", ylim=(0, 100))
            upper.legend(frameon=False, fontsize="small")
        figure.suptitle("Median and range over seeds", fontsize="small", color="#555555")
        return figure


def _curves(axes: Axes, network: Network, pick: Callable[[Run], list[float]]) -> None:
    """Each contender's median over the seeds, and the band between its extremes."""
    for contender, color in zip(network.contenders, COLORS, strict=True):
        curves = [pick(run) for run in contender.runs]
        draw_band(axes, network.training.evaluated, curves, color, contender.name)
    plain(axes)
