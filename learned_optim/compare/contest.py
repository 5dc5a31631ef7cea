"""The comparison: LearnedOptimizer as it is, Adam as it is, and Adam tuned for this very problem.

Each is there with and without knowing how long the run will be: `total_steps` for the learned rule,
a cosine for Adam. Adam's rates are searched on seeds that the comparison does not use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn

from learned_optim.compare.report import Entry, Report
from learned_optim.compare.training import Contender, Run, train
from learned_optim.factory import Factory, build_anew, load_factory
from learned_optim.hub import load_rule
from learned_optim.optimizer import DEFAULT_RULE, LearnedOptimizer
from learned_optim.reporting import ready
from learned_optim.weights import LoadedRule

# The comparison runs on seeds 0, 1, ...; Adam's rates are searched on seeds from here on.
TUNING_SEED = 1_000
# Rates are powers of ten in quarters of a decade: first every second one from 1e-4 to 1e-1, then
# on beyond an end that is the best, within these limits, then the two beside the best.
PER_DECADE = 4
FIRST = range(-4 * PER_DECADE, -1 * PER_DECADE + 1, 2)
LIMITS = (-7 * PER_DECADE, 1 * PER_DECADE)


@dataclass(frozen=True)
class CompareConfig:
    """What is compared.

    Args:
        model: `module:function`, see `learned_optim.factory`, or the function itself.
        steps: updates of each run.
        rule: as `LearnedOptimizer` takes it.
        seeds: runs of each contender.
        tuning_seeds: runs for each of Adam's rates.
        weight_decay: of all, decoupled: Adam is AdamW where it is not zero.
        folder: where the picture and the numbers go.
        quiet: no progress bar.

    Raises:
        ValueError: for a value outside its range.
    """

    model: str | Factory
    steps: int
    rule: str | os.PathLike[str] | LoadedRule = DEFAULT_RULE
    seeds: int = 3
    tuning_seeds: int = 2
    weight_decay: float = 0.0
    folder: str | os.PathLike[str] = "compare"
    quiet: bool = False

    def __post_init__(self) -> None:
        limits = {"steps": 10_000_000, "seeds": TUNING_SEED, "tuning_seeds": TUNING_SEED}
        for name, high in limits.items():
            if not 1 <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be in [1, {high}] but is {getattr(self, name)}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be >= 0 and finite but is {self.weight_decay}")

    def adam(self, rate: float) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
        """Adam of torch, or AdamW where there is decay."""
        if self.weight_decay:
            return partial(torch.optim.AdamW, lr=rate, weight_decay=self.weight_decay)
        return partial(torch.optim.Adam, lr=rate)

    @property
    def adam_name(self) -> str:
        """What `adam` makes."""
        return "AdamW" if self.weight_decay else "Adam"


def search(score: Callable[[float], float]) -> dict[float, float]:
    """Find the best rate: coarsely, beyond the ends as long as an end is best, then beside it.

    Args:
        score: of a rate; less is better, infinite where it diverged.

    Returns:
        Rate -> score, by rising rate.
    """
    scores = {index: score(_rate(index)) for index in FIRST}

    def best() -> int:
        return min(scores, key=lambda index: scores[index])

    while (index := best()) in (min(scores), max(scores)):
        beyond = index + (2 if index == max(scores) else -2)
        if not LIMITS[0] <= beyond <= LIMITS[1]:
            break
        scores[beyond] = score(_rate(beyond))
    middle = best()
    for index in (middle - 1, middle + 1):
        scores[index] = score(_rate(index))
    return {_rate(index): scores[index] for index in sorted(scores)}


def _rate(index: int) -> float:
    return 10 ** (index / PER_DECADE)


def run_compare(config: CompareConfig) -> Report:
    """Tune Adam, run all contenders, write `compare.png` and `compare.json` into the folder.

    The global random generators are seeded again and again and left as the last run left them.

    Returns:
        The report, whose `text` is for people to read.

    Raises:
        FactoryError: the user's function is not there, returns something else than agreed or no
            fresh model.
        WeightsError, WeightsUnavailable: the rule cannot be had.
        ModuleNotFoundError: an extra is missing.
        OSError: the folder cannot be written to.
    """
    from tqdm import tqdm

    rule = load_rule(config.rule)
    factory = load_factory(config.model) if isinstance(config.model, str) else config.model
    evaluated = build_anew(factory).evaluate is not None
    folder = Path(config.folder)
    ready(folder)
    with tqdm(unit="step", disable=config.quiet, leave=False) as bar:

        def runs(contender: Contender, first_seed: int, count: int) -> list[Run]:
            bar.set_description(contender.name)
            seeds = range(first_seed, first_seed + count)
            return [train(factory, contender, config.steps, seed, bar.update) for seed in seeds]

        entries = [
            Entry(contender, runs(contender, 0, config.seeds))
            for contender in _untuned(config, rule, evaluated=evaluated)
        ]
        for anneal in (False, True):
            best, grid = _tuned(
                config, anneal, lambda one: runs(one, TUNING_SEED, config.tuning_seeds)
            )
            entries.append(Entry(best, runs(best, 0, config.seeds), grid))
    report = Report(
        model=_name(config.model),
        steps=config.steps,
        rule=rule,
        entries=entries,
        tuning_runs=config.tuning_seeds,
        folder=folder,
    )
    report.write()
    return report


def _name(model: str | Factory) -> str:
    return model if isinstance(model, str) else getattr(model, "__qualname__", repr(model))


def _untuned(config: CompareConfig, rule: LoadedRule, *, evaluated: bool) -> list[Contender]:
    """What takes no search: the learned rule, without and with the horizon, and Adam's default.

    And the rule at its mean, where something is evaluated and it has one.
    """
    decay = config.weight_decay

    def learned(params: Iterable[nn.Parameter]) -> LearnedOptimizer:
        return LearnedOptimizer(params, rule, weight_decay=decay)

    def told(params: Iterable[nn.Parameter]) -> LearnedOptimizer:
        return LearnedOptimizer(params, rule, weight_decay=decay, total_steps=config.steps)

    has_mean = evaluated and rule.rule.owing is not None
    at_mean = (
        [Contender("LearnedOptimizer, averaged()", learned, averaged=True)] if has_mean else []
    )
    return [
        Contender("LearnedOptimizer", learned),
        *at_mean,
        Contender("LearnedOptimizer, total_steps", told),
        Contender(f"{config.adam_name}, default rate, 0.001", config.adam(1e-3)),
    ]


def _tuned(
    config: CompareConfig, anneal: bool, runs: Callable[[Contender], list[Run]]
) -> tuple[Contender, dict[float, float]]:
    """Adam at its best rate, and the grid that says so: rate -> median final loss."""
    kind = "cosine" if anneal else "constant"

    def contender(rate: float) -> Contender:
        name = f"{config.adam_name}, {kind}, {rate:.2g}"
        return Contender(name, config.adam(rate), anneal)

    grid = search(lambda rate: median(run.final for run in runs(contender(rate))))
    best = min(grid, key=lambda rate: grid[rate])
    named = f"{config.adam_name}, {kind}, best of {len(grid)} rates, {best:.2g}"
    return Contender(named, config.adam(best), anneal), grid
