"""What an inner step of meta-training costs, against the plain PyTorch loop.

    python -m benchmarks.meta_training_throughput            about two minutes on a machine at rest
    python -m benchmarks.meta_training_throughput --quick    small sizes, written nowhere

Question: how much faster are the estimators than the loop that public implementations share, and
how does the cost grow with the runs side by side and with the coordinates?
Method: the paper's rule (LSTM, 2 x 20) in `benchmarks.eager_unroll` and in
`learned_optim.meta_training`, on the same optimizee, minibatches and weights; that both give the
same losses and meta-gradients is measured first. One process, one thread, CPU time of the
process; contenders in turn, round after round, so that a change of the machine's mood meets all;
medians. "torch" is this package with its compiled kernels switched off.
Needs MNIST for the first task; without it random images of the same shape take its place, which
cost the same, and the result file says so.
Writes results/meta_training_throughput.json and .png.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch

from benchmarks.eager_unroll import EagerRule, EagerRun
from benchmarks.results import RESULTS, provenance, write_json
from learned_optim import kernels
from learned_optim.meta_training.estimators import NRES, TBPTT, GradientEstimator
from learned_optim.meta_training.estimators.evolution import PAIR
from learned_optim.meta_training.meta_loss import Sum
from learned_optim.meta_training.seeding import derive_seed
from learned_optim.meta_training.truncation import Constant, Worker
from learned_optim.rules import L2L, Weights
from learned_optim.tasks import MnistMLP, Quadratic, datasets
from learned_optim.tasks.base import Batch, Split, TaskFamily
from learned_optim.tasks.mnist_mlp import MLPTask

SEED = 0
ESTIMATORS = ("tbptt", "tbptt_second", "nres")
CONTENDERS = ("eager", "torch", "kernels")
TARGETS = {"tbptt": 1.5, "nres": 3.5}  # times as fast as the eager loop, on 784-20-10


class GeneratedTask(MLPTask):
    """Random images and labels in place of the data set's."""

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """See `MLPTask`."""
        x = torch.rand(self.batch_size, self.sizes[0], generator=generator)
        return {"x": x, "y": torch.randint(10, (self.batch_size,), generator=generator)}


class GeneratedMLP(MnistMLP):
    """`MnistMLP` where there is no MNIST."""

    def sample(self, generator: torch.Generator) -> MLPTask:
        """See `MnistMLP`."""
        return GeneratedTask(**vars(super().sample(generator)))


def mnist_family() -> type[MnistMLP]:
    """The real one if its data are here."""
    try:
        datasets.load("mnist")
    except (datasets.DataUnavailable, ImportError):
        return GeneratedMLP
    return MnistMLP


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        title: of the task.
        family: of the optimizee.
        estimator: one of `ESTIMATORS`.
        runs: side by side; evolution strategies have a pair of perturbations for each.
        steps: of a window.
        rounds: windows of each contender that count.
        contenders: who takes part.
    """

    title: str
    family: TaskFamily
    estimator: str
    runs: int = 1
    steps: int = 20
    rounds: int = 3
    contenders: tuple[str, ...] = CONTENDERS

    @property
    def copies(self) -> int:
        """Optimizees in training at once: runs, times two for pairs."""
        return self.runs * (PAIR if self.estimator == "nres" else 1)


def rule_and_weights(rule: L2L | None = None) -> tuple[L2L, Weights]:
    """The paper's rule as it is drawn."""
    rule = rule or L2L()
    return rule, rule.init_weights(torch.Generator().manual_seed(SEED))


def make_estimator(case: Case) -> GradientEstimator:
    """The package's estimator of a case."""
    if case.estimator == "nres":
        return NRES(unroll=case.steps)
    return TBPTT(unroll=case.steps, second_derivatives=case.estimator == "tbptt_second")


def make_worker(case: Case) -> Worker:
    """An episode that never ends while it is timed."""
    return Worker(case.family, case.runs, Constant(1_000_000), SEED, 0)


def run_seed(run: int) -> int:
    """The seed that a worker's first episode gives to its run number `run`."""
    return derive_seed("episode", SEED, 0, 0, "run", run)


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Plain torch in every fast path of the package."""
    with mock.patch.object(kernels, "available", return_value=False):
        yield


def make_action(case: Case, contender: str) -> Callable[[], object]:
    """A function that runs one window."""
    rule, weights = rule_and_weights()
    if contender == "eager":
        return eager_action(case, rule, weights)
    worker, estimator, meta_loss = make_worker(case), make_estimator(case), Sum()
    if contender == "kernels":
        return lambda: estimator.estimate(rule, weights, worker, meta_loss)

    def plain() -> None:
        with without_kernels():
            estimator.estimate(rule, weights, worker, meta_loss)

    return plain


def eager_action(case: Case, rule: L2L, weights: Weights) -> Callable[[], object]:
    """One run after the other; perturbed weights are copies with noise of the estimator's size."""
    task = case.family.sample(torch.Generator())
    if case.estimator != "nres":
        second = case.estimator == "tbptt_second"
        shared = EagerRule(rule, weights)
        runs = [EagerRun(shared, task, run_seed(run)) for run in range(case.runs)]
        return lambda: [run.backpropagate(case.steps, second_derivatives=second) for run in runs]
    noise = torch.Generator().manual_seed(SEED)
    runs = []
    for run in range(case.copies):
        perturbed = {
            key: value + NRES().sigma * torch.randn(value.shape, generator=noise)
            for key, value in weights.items()
        }
        runs.append(EagerRun(EagerRule(rule, perturbed), task, run_seed(run // PAIR)))
    return lambda: [run.run(case.steps) for run in runs]


def contenders(case: Case) -> list[str]:
    """Those of the case that this machine can run."""
    return [name for name in case.contenders if name != "kernels" or kernels.available()]


def measure(case: Case) -> list[dict[str, Any]]:
    """Rows of one case: CPU milliseconds an inner step and optimizee (run or perturbation)."""
    actions = {name: make_action(case, name) for name in contenders(case)}
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(case.rounds + 1):
        for name, action in actions.items():
            start = time.process_time()
            action()
            seconds[name].append(time.process_time() - start)
    params, _ = case.family.sample(torch.Generator()).init(torch.Generator())
    unit = 1e3 / (case.steps * case.copies)
    rows = []
    for name, found in seconds.items():
        counted = sorted(found[1:])  # the first round warms up
        rows.append(
            {
                "task": case.title,
                "coordinates": sum(value.numel() for value in params.values()),
                "estimator": case.estimator,
                "contender": name,
                "runs": case.runs,
                "optimizees": case.copies,
                "window": case.steps,
                "rounds": case.rounds,
                "ms": unit * statistics.median(counted),
                "fastest_ms": unit * counted[0],
                "slowest_ms": unit * counted[-1],
            }
        )
    eager = next((row for row in rows if row["contender"] == "eager"), None)
    for row in rows:
        row["times_faster"] = eager["ms"] / row["ms"] if eager else None
        row["times_faster_fastest"] = eager["fastest_ms"] / row["fastest_ms"] if eager else None
    return rows


def agreement(case: Case) -> dict[str, float]:
    """Largest relative differences from the eager loop over one window: losses, meta-gradient."""
    rule, weights = rule_and_weights()
    worker = make_worker(case)
    run = EagerRun(EagerRule(rule, weights), case.family.sample(torch.Generator()), run_seed(0))
    second = case.estimator == "tbptt_second"
    losses = run.backpropagate(case.steps, second_derivatives=second)
    estimate = make_estimator(case).estimate(rule, weights, worker, Sum())
    theirs = torch.cat([value.reshape(-1) for value in run.rule.gradients().values()])
    ours = torch.cat([value.reshape(-1) for value in estimate.grads.values()])
    return {
        "meta_loss": abs(estimate.meta_loss - sum(losses)) / abs(sum(losses)),
        "meta_gradient": float((ours - theirs).norm() / theirs.norm()),
    }


def headline_cases(family: type[MnistMLP]) -> list[Case]:
    """The two networks of the claim."""
    large, small = family(), MnistMLP(dataset="digits", hidden=32)
    return [
        Case("784-20-10", large, "tbptt"),
        Case("784-20-10", large, "tbptt_second"),
        Case("784-20-10", large, "nres", steps=5),
        Case("64-32-10", small, "tbptt"),
        Case("64-32-10", small, "tbptt_second"),
        Case("64-32-10", small, "nres", runs=8, steps=5),
    ]


def runs_cases() -> list[Case]:
    """Cost against the number of runs side by side, on the paper's quadratics."""
    found = []
    for estimator in ESTIMATORS:
        for runs in (1, 4, 32, 256):
            # One run after the other: what eager costs a run does not depend on their number.
            who = CONTENDERS if runs <= 4 else CONTENDERS[1:]
            case = Case("quadratic", Quadratic(), estimator, runs, 10, 3, who)
            found.append(case)
    return found


def coordinates_cases(family: type[MnistMLP]) -> list[Case]:
    """Cost against the number of coordinates of one network."""
    return [
        Case(f"784-{hidden}-10", family(hidden=hidden), estimator, 1, 5, 2)
        for estimator in ESTIMATORS
        for hidden in (1, 4, 16, 48)
    ]


def tiny(case: Case) -> Case:
    """A case that only shows that the script works."""
    return replace(case, steps=2, rounds=1, runs=min(case.runs, 2))


def run(quick: bool = False) -> dict[str, Any]:
    """All measurements."""
    torch.set_num_threads(1)
    family = mnist_family()
    groups = {
        "headline": headline_cases(family),
        "runs": runs_cases(),
        "coordinates": coordinates_cases(family),
    }
    if quick:
        groups = {
            name: [tiny(case) for case in cases if case.title in ("quadratic", "64-32-10")]
            for name, cases in groups.items()
        }
    checked = [case for case in groups["headline"] if case.estimator != "nres"]
    same = {f"{case.title} {case.estimator}": agreement(case) for case in checked}
    measured = {
        name: [row for case in cases for row in measure(case)] for name, cases in groups.items()
    }
    return {
        **provenance(),
        "seed": SEED,
        "rule": {"cell": "lstm", "layers": 2, "hidden": 20},
        "clock": "CPU time of the process, one thread",
        "images": "MNIST" if family is MnistMLP else "random, of MNIST's shape",
        "load": os.getloadavg(),
        "targets": TARGETS,
        "agreement": same,
        **measured,
    }


def table(content: dict[str, Any]) -> str:
    """Fixed-width text."""
    lines = [f"{'ms an inner step and optimizee':44}{'median':>9}{'fastest':>9}{'x eager':>9}"]
    for group in ("headline", "runs", "coordinates"):
        lines.append(group)
        for row in content[group]:
            name = f"{row['task']}, {row['optimizees']}, {row['estimator']}, {row['contender']}"
            ratio = "" if row["times_faster"] is None else f"{row['times_faster']:.2f}"
            lines.append(f"  {name:42}{row['ms']:9.3f}{row['fastest_ms']:9.3f}{ratio:>9}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Cost of an inner step of meta-training.")
    parser.add_argument("--quick", action="store_true", help="less, and written nowhere")
    quick = parser.parse_args().quick
    content = run(quick)
    print(table(content))
    print("agreement with the eager loop:", content["agreement"])
    if not quick:
        from benchmarks.throughput_figure import draw

        write_json(RESULTS / "meta_training_throughput.json", content)
        draw(content, RESULTS / "meta_training_throughput.png")


if __name__ == "__main__":
    main()
