"""The constants of the hand rule beneath `default`, chosen by the cross-entropy method.

    python -m benchmarks.hand_constants           goes on from results/hand_constants.json

Thirteen numbers need no gradient estimator that walks through windows: each generation trains 14
candidates side by side, whole episodes of 300 steps, once without and once with the horizon, on 13
problems drawn from families that meta-training may sample, two runs each. A candidate's score is
the mean of log(final loss / that of the best of 15 Adam rates), each clipped to a factor of 10,
plus a tenth of the worst. The Gaussian over candidates moves to the best four.

The validation list of `benchmarks.generalization` says whether the constants carry over; its
held-out list has no part in this. A first run is in results/hand_constants_trial.json: better on
its own problems, not on those of the validation list, so its constants were not adopted.

Noise-reuse evolution strategies on the same numbers ended worse than they began: with windows of
every age, the half-way losses count too, and schedules that fall early win those.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.results import RESULTS, provenance, write_json
from learned_optim.meta_training.baseline import loss_curve, tail_mean, tuned_adam
from learned_optim.meta_training.unroll import Runs
from learned_optim.rules import Default, Weights
from learned_optim.rules.hand import HAND_SCALE, hand_shapes, hand_weights
from learned_optim.tasks import (
    CNN,
    Autoencoder,
    MLPClassification,
    SineFit,
    SoftmaxRegression,
    TeacherStudent,
    TransformerLanguageModel,
)
from learned_optim.tasks.base import Task, TaskFamily

STEPS, RUNS, CANDIDATES, ELITE, GENERATIONS = 300, 2, 14, 4, 16
SEED = 1
TAIL = 0.05  # of the steps: their mean is the final loss
FLOOR = 1e-5  # of the first loss, added to both sides of a ratio
CLIP = 2.3  # of a log ratio
FAMILIES: tuple[TaskFamily, ...] = (
    MLPClassification(),
    MLPClassification(),
    MLPClassification(
        dataset="digits", depth=4, width=32, activation=("relu", "gelu"), layer_norm=False, gain=1.0
    ),
    CNN(),
    CNN(head="flatten", activation="relu"),
    Autoencoder(width=32),
    TeacherStudent(),
    TeacherStudent(target_scale=(30.0, 100.0), input_scale=(1.0, 3.0)),
    SineFit(image="waves", side=16, width=32),
    SineFit(side=16),
    TransformerLanguageModel(width=16, depth=1, length=8, batch_size=8),
    SoftmaxRegression(),
    MLPClassification(
        dataset="mnist", width=16, depth=2, activation="relu", batch_size=32, layer_norm=False
    ),
)
RULE = Default(hidden=0, controller=0)


def problems() -> list[tuple[Task, list[int], Tensor]]:
    """Task, seeds of its runs, and a tuned Adam's final losses `(RUNS,)`."""
    found = []
    for index, family in enumerate(tqdm(FAMILIES, desc="tuned Adam")):
        task = family.sample(torch.Generator().manual_seed(900 + index))
        seeds = [5000 + 10 * index + run for run in range(RUNS)]
        found.append((task, seeds, tuned_adam(task, seeds, STEPS, TAIL)[0]))
    return found


def as_weights(points: Tensor) -> Weights:
    """`(K, C)` -> the constants as the rule takes them, `(K, *shape)` each."""
    shapes = hand_shapes()
    parts = (points / HAND_SCALE).split([shape[0] for shape in shapes.values()], dim=-1)
    return dict(zip(shapes, parts, strict=True))


def as_point(weights: Weights) -> Tensor:
    """Inverse, for one set: `(C,)`."""
    return torch.cat([weights[key] for key in hand_shapes()]) * HAND_SCALE


def scores(points: Tensor, fixed: list[tuple[Task, list[int], Tensor]]) -> Tensor:
    """Log ratios `(2 * problems, K)`: first without the horizon, then with it."""
    weights, found = as_weights(points), []
    for told in (None, STEPS):
        for task, seeds, adam in fixed:
            runs = Runs(task, seeds, perturbations=len(points))
            curve = loss_curve(RULE, weights, runs, STEPS, told)
            final, first = tail_mean(curve, TAIL), curve[0].abs()
            final = torch.where(final.isfinite(), final, first * 1e3)
            ratio = (final + FLOOR * first) / (adam[:, None] + FLOOR * first)
            found.append(ratio.log().clamp(-CLIP, CLIP).mean(0))
    return torch.stack(found)


def generation(state: dict[str, Any], fixed: list[tuple[Task, list[int], Tensor]]) -> None:
    """Draw, score, move; `state` is updated."""
    count = len(state["history"])
    mean, spread = torch.tensor(state["mean"]), torch.tensor(state["spread"])
    rng = torch.Generator().manual_seed(SEED)
    # One stream for all generations, so that a run taken up again draws what it would have drawn.
    draws = [torch.randn((CANDIDATES, len(mean)), generator=rng) for _ in range(count + 1)]
    points = mean + spread * draws[-1]
    points[0] = mean
    found = scores(points, fixed)
    total = found.mean(0) + 0.1 * found.clamp_min(0).amax(0)
    elite = points[total.argsort()[:ELITE]]
    half = len(fixed)
    state["history"].append(
        {
            "without": round(float(found[:half, 0].mean()), 3),
            "with": round(float(found[half:, 0].mean()), 3),
        }
    )
    state["mean"] = (0.35 * mean + 0.65 * elite.mean(0)).tolist()
    state["spread"] = (0.6 * spread + 0.4 * (elite.std(0) + 0.03)).tolist()


def begin() -> dict[str, Any]:
    """At the constants of `rules.hand`."""
    mean = as_point(hand_weights())
    return {"mean": mean.tolist(), "spread": [0.4] * len(mean), "history": []}


def run(path: Path, generations: int) -> dict[str, Any]:
    """Go on from the file, if there is one, and write it after every generation."""
    state = json.loads(path.read_text(encoding="utf-8")) if path.exists() else begin()
    left = range(len(state["history"]), generations)
    fixed = problems() if left else []
    for _ in tqdm(left, desc="generations"):
        generation(state, fixed)
        write_json(path, state | provenance())
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--output", type=Path, default=RESULTS / "hand_constants.json")
    parser.add_argument("--generations", type=int, default=GENERATIONS)
    options = parser.parse_args()
    state = run(options.output, options.generations)
    for row in state["history"]:
        print(row)
    weights = as_weights(torch.tensor(state["mean"])[None])
    print({key: (value[0] * HAND_SCALE).tolist() for key, value in weights.items()})


if __name__ == "__main__":
    main()
