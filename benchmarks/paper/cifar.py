"""Convolutional networks on CIFAR (section 3.3): two LSTMs against tuned hand-written optimizers.

    python -m benchmarks.paper.cifar               CIFAR-10, CIFAR-5 and CIFAR-2
    python -m benchmarks.paper.cifar --only cifar_10

`l2l-cifar` was meta-trained on all labels, `l2l-cifar-sub` ("LSTM-sub") on the five that neither
CIFAR-5 nor CIFAR-2 has. The paper shows curves of 1000 steps and no numbers; what can be checked
is the order: the LSTM below every baseline.

Ours is smaller, for one CPU core: minibatches of 32 instead of 128, 100 steps, which is what the
rules were meta-trained for. 20 test runs; rates on a grid of 4 a decade, chosen for each data set
on 2 validation runs. A minibatch of 32 is noisy, so the loss at the end is the mean over the last
20 steps, for the choice of the rates and in the table. Finished parts are kept in `--work` and
taken up again.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from benchmarks.learned import PRETRAINED
from benchmarks.paper import report
from benchmarks.paper.parts import Contest, content_of
from benchmarks.plotting import loss_curves
from benchmarks.results import write_json
from benchmarks.tuning import Grid
from learned_optim.tasks import CifarConv, Task
from learned_optim.weights import load_folder

STEPS, TAIL = 100, 20
TEST_RUNS, VALIDATION_RUNS = 20, 2
BATCH = 32
RULES = {"learned": "l2l-cifar", "learned-sub": "l2l-cifar-sub"}
CASES = {
    "cifar_10": ("CIFAR-10", "all"),
    "cifar_5": ("CIFAR-5", "first_five"),
    "cifar_2": ("CIFAR-2", "first_two"),
}
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


def task_of(name: str) -> Task:
    """The network of one of `CASES`."""
    return CifarConv(labels=CASES[name][1], batch_size=BATCH).sample(torch.Generator())


def contest(name: str) -> Contest:
    """What is compared in one of `CASES`."""
    title = CASES[name][0]
    return Contest(name, title, task_of(name), GRID, STEPS, TAIL, TEST_RUNS, VALIDATION_RUNS)


def main() -> None:
    parser = report.small_parser(__doc__ or "")
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="CASE", help="these data sets")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/paper_cifar"), help="where finished parts are kept"
    )
    arguments = parser.parse_args()
    path = arguments.output / "paper_cifar.json"
    if not arguments.redraw:
        rules = {
            entry: load_folder(PRETRAINED / name)
            for entry, name in RULES.items()
            if (PRETRAINED / name / "config.json").is_file()
        }
        for name in arguments.only or CASES:
            result = contest(name).compare(rules, arguments.work)
            write_json(path, content_of(path, name, result, CASES, rules, arguments.work))
    results = list(json.loads(path.read_text(encoding="utf-8"))["cases"].values())
    for result in results:
        report.show(result)
    caption = f"CIFAR, median and quartiles of {TEST_RUNS} test runs, minibatches of {BATCH}"
    loss_curves(results, path.with_suffix(".png"), caption)
    print(f"Written: {path} and {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
