"""The comparison: every contender on every network, Adam's rate tuned on seeds of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn

from learned_optim.demo.digits import (
    ACTIVATIONS,
    Digits,
    MakeOptimizer,
    Run,
    Training,
    load,
    one_thread,
    train,
)
from learned_optim.demo.report import Contender, Network, Report
from learned_optim.hub import load_rule
from learned_optim.optimizer import DEFAULT_RULE, LearnedOptimizer
from learned_optim.reporting import ready
from learned_optim.weights import LoadedRule

# The evaluation runs on seeds 0, 1, ...; the grid is searched on seeds from here on.
TUNING_SEED = 1_000
RATES_PER_DECADE = 4


@dataclass(frozen=True)
class DemoConfig:
    """What the demo runs.

    Args:
        rule: as `LearnedOptimizer` takes it: a bundled name, a folder or a loaded rule.
        activations: the networks' nonlinearities, of `ACTIVATIONS`; one comparison for each.
        steps: updates of each run.
        seeds: runs of each contender in the comparison.
        tuning_seeds: runs for each rate of Adam's grid.
        decades: Adam's grid goes from 10 to the first to 10 to the second, four rates a decade.
        folder: where the picture and the numbers go.
        quiet: no progress bar.

    Raises:
        ValueError: for a value outside its range.
    """

    rule: str | os.PathLike[str] | LoadedRule = DEFAULT_RULE
    activations: Sequence[str] = ("sigmoid", "relu")
    steps: int = 500
    seeds: int = 3
    tuning_seeds: int = 2
    decades: tuple[int, int] = (-4, 0)
    folder: str | os.PathLike[str] = "demo"
    quiet: bool = False

    def __post_init__(self) -> None:
        if not self.activations:
            raise ValueError(f"activations must name some of {sorted(ACTIVATIONS)} but are empty")
        for activation in self.activations:
            if activation not in ACTIVATIONS:
                known = sorted(ACTIVATIONS)
                raise ValueError(f"activations must be among {known} but one is {activation!r}")
        limits = {"steps": 100_000, "seeds": TUNING_SEED, "tuning_seeds": TUNING_SEED}
        for name, high in limits.items():
            if not 1 <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be in [1, {high}] but is {getattr(self, name)}")
        if not -12 <= self.decades[0] < self.decades[1] <= 3:
            raise ValueError(
                f"decades must rise, from -12 at least to 3 at most, but are {self.decades}"
            )

    @property
    def rates(self) -> list[float]:
        """Adam's grid, both ends included."""
        low, high = (RATES_PER_DECADE * decade for decade in self.decades)
        return [10 ** (index / RATES_PER_DECADE) for index in range(low, high + 1)]


def adam(rate: float) -> MakeOptimizer:
    """torch.optim.Adam at a rate, all else at its defaults."""
    return partial(torch.optim.Adam, lr=rate)


class Comparison:
    """One demo in progress: its data, its settings, its progress bar."""

    def __init__(self, config: DemoConfig, tick: Callable[[int], object]) -> None:
        self.config = config
        self.tick = tick
        self.training = Training(steps=config.steps)
        self.digits: Digits = load()

    def runs(self, make: MakeOptimizer, activation: str, seeds: Iterable[int]) -> list[Run]:
        """One run for each seed."""
        return [
            train(make, self.digits, activation, self.training, seed, self.tick) for seed in seeds
        ]

    def tune(self, activation: str) -> dict[float, float]:
        """Adam's grid: rate -> median final training loss over the tuning seeds."""
        seeds = range(TUNING_SEED, TUNING_SEED + self.config.tuning_seeds)
        return {
            rate: median(run.final_loss for run in self.runs(adam(rate), activation, seeds))
            for rate in self.config.rates
        }

    def network(self, activation: str, rule: LoadedRule) -> Network:
        """Tune, then run every contender on the seeds of the comparison."""

        def learned(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            return LearnedOptimizer(params, rule=rule)

        grid = self.tune(activation)
        best = min(grid, key=lambda rate: grid[rate])
        contenders = {
            f"LearnedOptimizer ({rule.name})": learned,
            "Adam, default rate, 0.001": adam(1e-3),
            f"Adam, best of {len(grid)} rates, {best:.2g}": adam(best),
        }
        seeds = range(self.config.seeds)
        results = [
            Contender(name, self.runs(make, activation, seeds)) for name, make in contenders.items()
        ]
        return Network(activation, self.training, grid, results)


def run_demo(config: DemoConfig) -> Report:
    """Train, compare, and write `digits.png` and `digits.json` into the folder.

    Returns:
        The report, whose `text` is for people to read.

    Raises:
        DataUnavailable, ModuleNotFoundError: where an extra is missing, saying how to get it.
        WeightsError, WeightsUnavailable: where the rule cannot be had.
        OSError: where the folder cannot be written to.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the demo needs tqdm: pip install 'learned-optim[meta-training]'"
        ) from error
    rule, folder = load_rule(config.rule), Path(config.folder)
    ready(folder)
    runs = len(config.rates) * config.tuning_seeds + 3 * config.seeds
    total = len(config.activations) * runs * config.steps
    with one_thread(), tqdm(total=total, unit="step", disable=config.quiet) as bar:
        comparison = Comparison(config, bar.update)
        networks = []
        for activation in config.activations:
            bar.set_description(f"digits, {activation}")
            networks.append(comparison.network(activation, rule))
    report = Report(networks, rule.name, rule.sha256, folder)
    report.write()
    return report
