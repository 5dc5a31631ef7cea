"""One case of the paper: tune the baselines, run all on the test runs, compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import BASELINES, Sweep
from benchmarks.runs import Measure, Problem, Stepper, run
from benchmarks.statistics import curve, ratio, summary
from benchmarks.tuning import Grid, tuned
from learned_optim.tasks import Task

# The paper has no AdaGrad and no heavy-ball momentum.
PAPER_BASELINES = ("sgd", "nag", "rmsprop", "adam")


@dataclass(frozen=True)
class Case:
    """What is compared.

    Attributes:
        name: key in results, and of the file of tuned rates.
        title: for people.
        task: the optimizee.
        steps: length of the runs; the rates are tuned for the loss at the end.
        grid: of learning rates.
        validation_runs: runs that rates are chosen on.
        test_runs: runs that are reported.
        tuning_block: runs stepped together while tuning.
        test_block: likewise on the test runs.
        paper: entry -> the paper's loss at the end, where its figures show it.
        measure: further losses of the parameters at the end.
    """

    name: str
    title: str
    task: Task
    steps: int
    grid: Grid
    validation_runs: int
    test_runs: int
    tuning_block: int
    test_block: int
    paper: Mapping[str, float] = field(default_factory=dict)
    measure: Measure | None = None

    def validation(self) -> Problem:
        """The runs that rates are chosen on."""
        return Problem(self.task, self.validation_runs, self.steps, "validation", self.tuning_block)

    def test(self) -> Problem:
        """The runs that are reported."""
        return Problem(self.task, self.test_runs, self.steps, "test", self.test_block)


Outcome = dict[str, Tensor]
"""`losses` `(runs, steps + 1)` and, by name, what was measured at the end, `(runs,)`."""


def outcomes(case: Case, make_stepper: Callable[[], Stepper], label: str) -> list[Outcome]:
    """One outcome for each copy of the stepper, on the test runs."""
    result = run(
        case.test(),
        make_stepper,
        measure=case.measure,
        measure_at=(case.steps,),
        progress=f"{case.name}, {label}",
    )
    measured = result.measured.get(case.steps, {})
    return [
        {"losses": result.losses[:, k]} | {name: value[:, k] for name, value in measured.items()}
        for k in range(result.losses.shape[1])
    ]


def compare(
    case: Case, learned: Mapping[str, Callable[[], Stepper]], *, retune: bool = False
) -> dict[str, Any]:
    """Everything that the table and the figure of one case need, ready for JSON.

    Args:
        case: what is compared.
        learned: entry -> maker of its stepper, for the learned rules.
        retune: tune the baselines again.
    """
    chosen = tuned(case.name, case.validation(), case.grid, retune=retune)
    rates = {name: [chosen[name]["rate"]] for name in BASELINES}
    results = dict(zip(BASELINES, outcomes(case, lambda: Sweep(rates), "baselines"), strict=True))
    for entry, make_stepper in learned.items():
        results[entry] = outcomes(case, make_stepper, entry)[0]
    metrics = {entry: _metrics(outcome) for entry, outcome in results.items()}
    entries = {
        entry: {
            "rate": chosen[entry]["rate"] if entry in chosen else None,
            "paper": case.paper.get(entry.partition("-")[0]),
            "curve": curve(results[entry]["losses"]),
        }
        for entry in results
    }
    return {
        "title": case.title,
        "steps": case.steps,
        "test_runs": case.test_runs,
        "validation_runs": case.validation_runs,
        "entries": entries,
        "metrics": {metric: ranked(metrics, metric) for metric in metrics["sgd"]},
    }


def _metrics(outcome: Outcome) -> dict[str, Tensor]:
    """`(runs,)` each.

    `final` is the paper's protocol: the loss on the next minibatch. `sum` is the meta-loss: the
    losses at theta_1, ..., theta_T.
    """
    losses = outcome["losses"]
    named = {"final": losses[:, -1], "sum": losses[:, 1:].sum(1)}
    return named | {name: value for name, value in outcome.items() if name != "losses"}


def ranked(metrics: Mapping[str, Mapping[str, Tensor]], metric: str) -> dict[str, Any]:
    """Summaries of one metric, and each entry's ratio to the best baseline's mean.

    `ratio` is to the best of all baselines, `ratio_to_papers` to the best of the paper's four.
    """
    raw = {entry: named[metric] for entry, named in metrics.items()}
    # A run that ends as NaN counts as infinitely bad, so that it cannot drop out of a comparison.
    values = {entry: value.masked_fill(value.isnan(), torch.inf) for entry, value in raw.items()}
    means = {entry: float(value.double().mean()) for entry, value in values.items()}
    best = min(BASELINES, key=means.__getitem__)
    best_of_papers = min(PAPER_BASELINES, key=means.__getitem__)
    summaries = {
        entry: summary(value)
        | {
            "ratio": ratio(value, values[best]),
            "ratio_to_papers": ratio(value, values[best_of_papers]),
        }
        for entry, value in values.items()
    }
    return {
        "best_baseline": best,
        "best_of_papers": best_of_papers,
        "entries": summaries,
    }
