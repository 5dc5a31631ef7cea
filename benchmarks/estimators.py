"""Bias, variance and cost of the meta-gradient estimators, on one page.

    python -m benchmarks.estimators            about a minute on a machine at rest
    python -m benchmarks.estimators --quick    few runs, written nowhere

Question: what does each estimator get wrong on average, how far does a single estimate scatter,
and which is nearest to the true meta-gradient after a given time?
Method: an estimate is the total over the windows of one episode, at fixed meta-parameters; many
independent episodes of each estimator, the same number side by side, CPU time of one thread.
- bowl: the meta-gradient is a formula (`benchmarks.bowl`), and so is that of the smoothed
  meta-loss, which evolution strategies estimate.
- quadratic: an LSTM of one layer and four units, meta-trained for a few steps, on the paper's
  quadratics; the reference is backpropagation through the whole episode with second derivatives,
  averaged over many more episodes than any estimator gets.
The squared bias is corrected for the scatter of the mean, so it can come out as zero. Over an
episode at fixed meta-parameters `nres` is `es` in pieces: the same numbers, another price.
Writes results/estimators.json and results/estimators.png.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.bowl import Bowl, Formula
from benchmarks.results import RESULTS, provenance, write_json
from learned_optim.meta_training.estimators import ES, NRES, PES, TBPTT, GradientEstimator
from learned_optim.meta_training.meta_loss import Sum
from learned_optim.meta_training.truncation import Constant, Worker
from learned_optim.rules import L2L, LearnableSGD, UpdateRule, Weights
from learned_optim.tasks import Quadratic
from learned_optim.tasks.base import TaskFamily

SEED = 0
RATE = 0.1
SIGMA = {"bowl": 0.1, "quadratic": 0.01}
BOWL_RUNS = 8  # times as many side by side: they cost next to nothing there
SEEN = 2.0  # standard errors
REFERENCE_STREAM = 1_000_000  # workers from here on: no estimator shares a run with the reference


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        workers: independent estimates of each estimator.
        runs: episodes averaged in each.
        reference: workers of the reference, of `8 * runs` episodes each.
        outer_steps: of meta-training before the quadratic's gradients are taken.
    """

    workers: int = 72
    runs: int = 32
    reference: int = 64
    outer_steps: int = 10


@dataclass(frozen=True)
class Setting:
    """Where gradients are estimated: family, rule, meta-parameters and length of an episode."""

    name: str
    family: TaskFamily
    rule: UpdateRule
    weights: Weights
    steps: int


def entrants(setting: Setting) -> dict[str, GradientEstimator]:
    """Name in tables -> estimator; windows of a whole episode and of a quarter."""
    whole, window, sigma = setting.steps, setting.steps // 4, SIGMA[setting.name]
    return {
        f"tbptt {whole}, 2nd": TBPTT(unroll=whole, second_derivatives=True),
        f"tbptt {whole}": TBPTT(unroll=whole),
        f"tbptt {window}, 2nd": TBPTT(unroll=window, second_derivatives=True),
        f"tbptt {window}": TBPTT(unroll=window),
        "tbptt 1": TBPTT(unroll=1),
        "es": ES(sigma=sigma),
        f"pes {window}": PES(unroll=window, sigma=sigma),
        f"nres {window}": NRES(unroll=window, sigma=sigma),
    }


def flat(weights: Weights) -> Tensor:
    """`(P,)` in float64."""
    return torch.cat([value.reshape(-1) for value in weights.values()]).double()


def episode(setting: Setting, estimator: GradientEstimator, runs: int, index: int) -> Tensor:
    """`(P,)`: the estimates of all windows of one episode, added up."""
    worker = Worker(setting.family, runs, Constant(setting.steps), SEED, index)
    total = torch.zeros(flat(setting.weights).shape, dtype=torch.float64)
    while worker.episode < 0 or (worker.carry is not None and worker.carry.step < setting.steps):
        estimate = estimator.estimate(setting.rule, setting.weights, worker, Sum())
        if estimate.non_finite:
            raise RuntimeError(f"{setting.name}: a loss was not finite; take a smaller sigma")
        total += flat(estimate.grads)
    return total


def sample(setting: Setting, estimator: GradientEstimator, size: Size) -> tuple[Tensor, float]:
    """`(workers, P)` and the CPU seconds of one episode."""
    episode(setting, estimator, size.runs, REFERENCE_STREAM - 1)  # warms up
    start = time.process_time()
    found = [episode(setting, estimator, size.runs, index) for index in range(size.workers)]
    seconds = time.process_time() - start
    return torch.stack(found), seconds / (size.workers * size.runs)


@dataclass(frozen=True)
class Reference:
    """The true meta-gradient, `(P,)`, and the variance of what is known of it (summed over P)."""

    gradient: Tensor
    variance: float = 0.0


def judge(found: Tensor, seconds: float, runs: int, reference: Reference) -> dict[str, Any]:
    """Bias, variance and cost from independent estimates `(M, P)`, each a mean over `runs`.

    All lengths are relative to the reference's. `bias` has the variance of both means taken off. It
    counts as seen where the error is more than twice what scatter alone would make it; an unseen
    one counts as none in `error_after_...`. `variance` is one episode's, summed over the
    meta-parameters; `variance_second` is that of the mean of the episodes of one CPU second.
    """
    scale = float(reference.gradient.norm())
    mean = found.mean(0)
    of_mean = float(found.var(0).sum()) / len(found)
    error = float((mean - reference.gradient).norm())
    noise = of_mean + reference.variance
    squared_bias = max(0.0, error**2 - noise) / scale**2
    seen = error**2 > SEEN**2 * noise
    counted = squared_bias if seen else 0.0
    variance = float(found.var(0).sum()) * runs / scale**2
    return {
        "cosine": float(torch.nn.functional.cosine_similarity(mean, reference.gradient, dim=0)),
        "relative_error": error / scale,
        "standard_error": noise**0.5 / scale,
        "bias": squared_bias**0.5,
        "bias_seen": seen,
        "variance": variance,
        "cpu_ms_per_episode": 1e3 * seconds,
        "variance_second": variance * seconds,
        "error_after_second": (counted + variance * seconds) ** 0.5,
        "error_after_minute": (counted + variance * seconds / 60) ** 0.5,
        "episodes": len(found) * runs,
    }


def bowl_setting(steps: int = 12) -> Setting:
    """Gradient descent on the bowl."""
    rule = LearnableSGD(learning_rate=RATE)
    return Setting("bowl", Bowl(), rule, rule.init_weights(torch.Generator()), steps)


def quadratic_setting(size: Size, steps: int = 20) -> Setting:
    """A small LSTM on the paper's quadratics, meta-trained for `outer_steps`."""
    rule = L2L(layers=1, hidden=4, preprocess="none", scale=1.0)
    weights = rule.init_weights(torch.Generator().manual_seed(SEED))
    worker = Worker(Quadratic(), 64, Constant(steps), SEED, REFERENCE_STREAM - 2)
    leaves = {key: value.requires_grad_() for key, value in weights.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=0.01)
    for _ in range(size.outer_steps):
        fixed = {key: value.detach() for key, value in leaves.items()}
        estimate = TBPTT(unroll=steps).estimate(rule, fixed, worker, Sum())
        for key, value in leaves.items():
            value.grad = estimate.grads[key]
        optimizer.step()
    weights = {key: value.detach() for key, value in leaves.items()}
    return Setting("quadratic", Quadratic(), rule, weights, steps)


def long_run(setting: Setting, size: Size) -> Reference:
    """Backpropagation through whole episodes, averaged over many."""
    estimator = TBPTT(unroll=setting.steps, second_derivatives=True)
    found = torch.stack(
        [
            episode(setting, estimator, 8 * size.runs, REFERENCE_STREAM + index)
            for index in range(size.reference)
        ]
    )
    return Reference(found.mean(0), float(found.var(0).sum()) / len(found))


def measure_bowl(size: Size) -> dict[str, Any]:
    """Every estimator on the bowl, where the error of the smoothed gradient is known too."""
    setting, size = bowl_setting(), replace(size, runs=BOWL_RUNS * size.runs)
    formula = Formula(RATE, setting.steps)
    exact, smoothed = formula.gradient(), formula.smoothed_gradient(SIGMA["bowl"])
    rows = {}
    for name, estimator in entrants(setting).items():
        found, seconds = sample(setting, estimator, size)
        rows[name] = judge(
            found, seconds, size.runs, Reference(torch.tensor([exact], dtype=torch.float64))
        ) | {
            "mean": float(found.mean()),
            "standard_error_of_mean": float(found.std()) / len(found) ** 0.5,
        }
    return {
        "steps": setting.steps,
        "sigma": SIGMA["bowl"],
        "side_by_side": size.runs,
        "exact": exact,
        "smoothed": smoothed,
        "rows": rows,
    }


def measure_quadratic(size: Size) -> dict[str, Any]:
    """Every estimator on the quadratics."""
    setting = quadratic_setting(size)
    reference = long_run(setting, size)
    rows = {}
    for name, estimator in entrants(setting).items():
        found, seconds = sample(setting, estimator, size)
        rows[name] = judge(found, seconds, size.runs, reference)
    return {
        "steps": setting.steps,
        "sigma": SIGMA["quadratic"],
        "side_by_side": size.runs,
        "meta_parameters": len(reference.gradient),
        "outer_steps_before": size.outer_steps,
        "reference_episodes": 8 * size.runs * size.reference,
        "reference_standard_error": reference.variance**0.5 / float(reference.gradient.norm()),
        "rows": rows,
    }


def table(content: Mapping[str, Any]) -> str:
    """Fixed-width text."""
    keys = {
        "cosine": "cosine",
        "relative_error": "error",
        "standard_error": "(s.e.)",
        "bias": "bias",
        "variance": "variance",
        "cpu_ms_per_episode": "ms",
        "variance_second": "var*s",
        "error_after_second": "after 1s",
        "error_after_minute": "after 60s",
    }
    lines = []
    for case in ("bowl", "quadratic"):
        lines.append(f"{case:16}" + "".join(f"{title:>10}" for title in keys.values()))
        for name, row in content[case]["rows"].items():
            lines.append(f"  {name:14}" + "".join(f"{row[key]:10.3g}" for key in keys))
    return "\n".join(lines)


def run(size: Size) -> dict[str, Any]:
    """Both cases."""
    torch.set_num_threads(1)
    return {
        **provenance(),
        "seed": SEED,
        "clock": "CPU time of the process, one thread",
        "bowl": measure_bowl(size),
        "quadratic": measure_quadratic(size),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Bias, variance and cost of meta-gradients.")
    parser.add_argument("--quick", action="store_true", help="less, and written nowhere")
    quick = parser.parse_args().quick
    content = run(Size(8, 8, 4, 20) if quick else Size())
    print(table(content))
    if not quick:
        from benchmarks.estimators_figure import draw

        write_json(RESULTS / "estimators.json", content)
        draw(content, RESULTS / "estimators.png")


if __name__ == "__main__":
    main()
