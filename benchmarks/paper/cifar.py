"""Convolutional networks on CIFAR (section 3.3): two LSTMs against tuned hand-written optimizers.

    python -m benchmarks.paper.cifar               CIFAR-10 in three ways, CIFAR-5, CIFAR-2
    python -m benchmarks.paper.cifar --only cifar_10

The paper's LSTM was meta-trained on all labels, its LSTM-sub on the five that neither CIFAR-5 nor
CIFAR-2 has; its curves of 1000 steps have no numbers, and what can be checked is the order: the
LSTM below every baseline. These are `l2l-cifar` and `l2l-cifar-sub`. Beside them `l2l-mnist-odd`:
meta-trained on MNIST alone, used at lr = 0.1, the better of two values tried on three other runs
of CIFAR-10.

Ours is smaller, for one CPU core: minibatches of 32. The rules were meta-trained on those for 100
steps and are compared after as many; on CIFAR-10 with the paper's minibatches of 128 and after
1000 steps as well. 20 test runs; rates on a grid of 4 a decade, chosen for each case on 2
validation runs. Minibatches are noisy, so the loss at the end is the mean over the last 20 steps,
for the choice of the rates and in the table.
Finished parts are kept in `--work` and taken up again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.learned import PRETRAINED
from benchmarks.paper import report
from benchmarks.paper.parts import Contest, content_of
from benchmarks.plotting import loss_curves
from benchmarks.results import write_json
from benchmarks.tuning import Grid
from learned_optim.rules import L2L
from learned_optim.tasks import CifarConv, Task
from learned_optim.weights import LoadedRule, in_memory, load_folder

STEPS, TAIL = 100, 20
TEST_RUNS, VALIDATION_RUNS = 20, 2
BATCH, PAPER_BATCH = 32, 128
RULES = {"learned": "l2l-cifar", "learned-sub": "l2l-cifar-sub"}
FROM_MNIST, RATE = "l2l-mnist-odd", 0.1

GRID = Grid(
    {
        "sgd": (-1.25, -0.25),
        "momentum": (-2.25, -1.25),
        "nag": (-2.25, -1.25),
        "adagrad": (-2.25, -1.25),
        "rmsprop": (-3.5, -2.5),
        "adam": (-3, -2),
    },
    per_decade=4,
)
# With less noise the two with momentum bear longer steps.
PAPER_GRID = replace(
    GRID, ranges={**GRID.ranges, "momentum": (-2.25, -0.75), "nag": (-2.25, -0.75)}
)


class Case(NamedTuple):
    """A title, the labels that are shown, the length of the runs, images a minibatch, rates."""

    title: str
    labels: str
    steps: int = STEPS
    batch: int = BATCH
    grid: Grid = GRID


CASES = {
    "cifar_10": Case("CIFAR-10", "all"),
    "cifar_5": Case("CIFAR-5", "first_five"),
    "cifar_2": Case("CIFAR-2", "first_two"),
    "cifar_10_128": Case("CIFAR-10, minibatches of 128", "all", batch=PAPER_BATCH, grid=PAPER_GRID),
    "cifar_10_long": Case("CIFAR-10, longer run", "all", 1000),
}


def task_of(name: str) -> Task:
    """The network of one of `CASES`."""
    case = CASES[name]
    return CifarConv(labels=case.labels, batch_size=case.batch).sample(torch.Generator())


def contest(name: str) -> Contest:
    """What is compared in one of `CASES`."""
    case, task = CASES[name], task_of(name)
    return Contest(name, case.title, task, case.grid, case.steps, TAIL, TEST_RUNS, VALIDATION_RUNS)


def rules() -> dict[str, LoadedRule]:
    """Entry -> rule, of those that have weights."""
    found = {
        entry: load_folder(PRETRAINED / name)
        for entry, name in RULES.items()
        if (PRETRAINED / name / "config.json").is_file()
    }
    other = load_folder(PRETRAINED / FROM_MNIST)
    assert isinstance(other.rule, L2L)
    slower = replace(other.rule, scale=RATE * other.rule.scale)
    return found | {"learned-mnist": in_memory(slower, dict(other.weights), name=FROM_MNIST)}


def main() -> None:
    parser = report.small_parser(__doc__ or "")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help="these data sets")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/paper_cifar"), help="where finished parts are kept"
    )
    arguments = parser.parse_args()
    path = arguments.output / "paper_cifar.json"
    if not arguments.redraw:
        contestants = rules()
        for name in arguments.only or CASES:
            result = contest(name).compare(contestants, arguments.work)
            write_json(path, content_of(path, name, result, CASES, contestants, arguments.work))
    results = list(json.loads(path.read_text(encoding="utf-8"))["cases"].values())
    for result in results:
        report.show(result)
    caption = (
        f"CIFAR, median and quartiles of {TEST_RUNS} test runs, minibatches of {BATCH} or as named"
    )
    loss_curves(results, path.with_suffix(".png"), caption)
    print(f"Written: {path} and {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
