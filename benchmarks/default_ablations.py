"""Which parts of `default` and of its meta-training matter? Short runs at equal compute.

    python -m benchmarks.default_ablations             every variant that the JSON lacks
    python -m benchmarks.default_ablations --again     all of them anew
    python -m benchmarks.default_ablations --redraw    the table and the picture from the JSON

Each variant changes one thing of a base that trains all levels of `default` on the tasks of its
recipe by noise-reuse evolution strategies, starts from the hand rule and gets the same CPU time
(`SECONDS`, on one thread): a cheaper rule makes more updates out of it. So this says what learns
fast, not what is best in the end. Judged on fixed draws of the training
families, two runs of 300 steps each, without and with the horizon: the mean of log(final loss /
that of the best of 15 Adam rates), each clipped to a factor of 10. "Not trained" is the variant's
own start. One meta-seed each, but for the base, which has two: their difference is the yardstick.
Writes results/default_ablations.json and .png. Variants in the JSON are kept while the constants
are the same; after a change of the rule's code, which nothing notices, begin `--again`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.plotting import STYLE, colour
from benchmarks.results import ANEW, RESULTS, provenance, tell_of_kept, write_json
from learned_optim.meta_training.baseline import loss_curve, tail_mean, tuned_adam
from learned_optim.meta_training.estimators import ESTIMATORS
from learned_optim.meta_training.meta_loss import Log
from learned_optim.meta_training.outer_loop import MetaTrainer
from learned_optim.meta_training.recipe import Curriculum, Recipe
from learned_optim.meta_training.recipe_file import read_recipe
from learned_optim.meta_training.seeding import derive_seed, generator
from learned_optim.meta_training.truncation import Constant
from learned_optim.meta_training.unroll import Runs
from learned_optim.rules import Default, UpdateRule, Weights
from learned_optim.rules.hand import HAND_SCALE, hand_weights
from learned_optim.tasks.augment import Reparametrise
from learned_optim.tasks.base import Task
from learned_optim.weights import digest

SECONDS = 200.0
STEPS, RUNS, TAIL = 300, 2, 0.05
FLOOR, CLIP = 1e-5, math.log(10.0)
RECIPE = Path(__file__).parents[1] / "pretrained" / "default" / "recipe.toml"


WINDOWS = {
    "unroll": 40,
    "sigma": 0.02,
    "difference_clip": 0.1,
    "late": 2.0,
    "late_told": 8.0,
    "tell_horizon": 0.5,
}


def base() -> Recipe:
    """The tasks and horizons of the shipped recipe; all levels from the hand rule on, by NRES.

    The recipe's whole episodes are too slow for a comparison of short runs.
    """
    recipe = read_recipe(RECIPE)
    return replace(
        recipe,
        rule=Default(),
        start="",
        seed=0,
        estimator=ESTIMATORS["nres"](**WINDOWS),
        meta_loss=Log(FLOOR),
        outer=replace(recipe.outer, lr=0.003, final_lr=1.0),
        validation=replace(recipe.validation, every=10**9),
    )


def variants() -> dict[str, Recipe]:
    """Name -> recipe."""
    whole = base()
    reparametrised = tuple(
        replace(entry, family=Reparametrise(entry.family)) for entry in whole.tasks
    )
    untold = ESTIMATORS["nres"](**{**WINDOWS, "tell_horizon": 0.0})
    return {
        "base": whole,
        "base, another seed": replace(whole, seed=1),
        "no coordinate level": replace(whole, rule=Default(hidden=0)),
        "no controller": replace(whole, rule=Default(controller=0)),
        "no matrix stage": replace(whole, rule=Default(matrix=False)),
        "no bases": replace(whole, rule=Default(basis=False)),
        "never told the horizon": replace(whole, estimator=untold),
        "fan-in scale, not RMS": whole,
        "no feedback": whole,
        "no brake": whole,
        "estimator: PES": replace(whole, estimator=ESTIMATORS["pes"](**WINDOWS)),
        "estimator: ES": replace(whole, estimator=ESTIMATORS["es"](**WINDOWS)),
        "estimator: truncated backpropagation": replace(
            whole, estimator=ESTIMATORS["tbptt"](unroll=WINDOWS["unroll"])
        ),
        "all episodes of 200 steps": replace(whole, horizon=Constant(200)),
        "curriculum of horizons": replace(whole, curriculum=Curriculum((0.25, 0.5, 1.0))),
        "reparametrised tensors": replace(whole, tasks=reparametrised),
    }


# The constants that some variants begin with, before they are scaled.
STARTS: dict[str, dict[str, tuple[float, ...]]] = {
    # A floor above any tensor's root mean square: the scale is then 3 / sqrt(fan_in), and the
    # step's share of it smaller by as much as that is above what weights are drawn at.
    "fan-in scale, not RMS": {
        "log_floor": (math.log(3.0), math.log(3.0)),
        "log_step": (math.log(0.1 / 3), math.log(0.1 / 9)),
    },
    # So slow that no run sees it, wherever meta-training moves it.
    "no feedback": {"log_rate": (-30.0, -30.0)},
    "no brake": {"brake": (0.0,)},
}


def start(name: str, trainer: MetaTrainer) -> None:
    """Change the constants that a variant begins with."""
    weights = trainer.snapshot()
    for key, values in STARTS.get(name, {}).items():
        weights[f"hand.{key}"] = torch.tensor(values) / HAND_SCALE
    trainer.start_from(weights)


def log_ratios(curve: Tensor, adam: Tensor, tail: float) -> Tensor:
    """Each run's log(final loss / tuned Adam's), clipped to a factor of 10; no number is the worst.

    Args:
        curve: the losses from the start on, `(steps + 1, R)`.
        adam: Adam's final losses, `(R,)`.
        tail: the final loss is the mean over this last fraction.
    """
    floor = FLOOR * curve[0].abs()
    ratios = (tail_mean(curve, tail) + floor) / (adam + floor)
    return ratios.log().nan_to_num(CLIP, CLIP, -CLIP).clamp(-CLIP, CLIP)


class Judge:
    """Fixed problems; the tuned Adam that they are measured against is run once."""

    def __init__(self, recipe: Recipe) -> None:
        self._problems: list[tuple[Task, list[int], Tensor]] = []
        for index, entry in enumerate(tqdm(recipe.tasks, desc="tuned Adam")):
            task = entry.family.sample(generator("ablations", "task", index))
            seeds = [derive_seed("ablations", index, run) for run in range(RUNS)]
            self._problems.append((task, seeds, tuned_adam(task, seeds, STEPS, TAIL)[0]))

    def score(self, rule: UpdateRule, weights: Weights, total_steps: int | None) -> float:
        """The mean log ratio over the problems."""
        found = []
        for task, seeds, adam in self._problems:
            curve = loss_curve(rule, weights, Runs(task, seeds), STEPS, total_steps)
            found.append(log_ratios(curve, adam, TAIL).mean())
        return round(float(torch.stack(found).mean()), 4)

    def scores(self, rule: UpdateRule, weights: Weights) -> dict[str, float]:
        """Without and with the horizon."""
        told = {"without": None, "with": STEPS}
        return {key: self.score(rule, weights, steps) for key, steps in told.items()}


def examine(name: str, recipe: Recipe, judge: Judge, seconds: float) -> dict[str, Any]:
    """One variant, ready for JSON."""
    trainer = MetaTrainer(recipe)
    start(name, trainer)
    before = judge.scores(recipe.rule, trainer.snapshot())
    began = time.process_time()
    while time.process_time() - began < seconds:
        trainer.step()
    return {
        "updates": trainer.step_count,
        "meta_parameters": sum(value.numel() for value in trainer.weights.values()),
        "not_trained": before,
        "trained": judge.scores(recipe.rule, trainer.averaged),
    }


def measure(path: Path, seconds: float = SECONDS) -> None:
    """Run the variants that `path` lacks, and write after each.

    Those of other constants to start from, or of another time, are measured anew.
    """
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    made_with = {"cpu_seconds_each": seconds, "weights_sha256": digest(hand_weights())}
    done: dict[str, Any] = saved["variants"] if made_with.items() <= saved.items() else {}
    judge = Judge(base())
    for name, recipe in variants().items():
        if name not in done:
            done[name] = examine(name, recipe, judge, seconds)
            write_json(path, {**made_with, "variants": done, **provenance()})


def show(content: Mapping[str, Any]) -> None:
    """Print a line for each variant."""
    print(
        f"{'log(final loss / tuned Adam)':40}{'without':>20}{'with the horizon':>20}{'updates':>9}"
    )
    for name, facts in content["variants"].items():
        before, after = facts["not_trained"], facts["trained"]
        cells = [f"{before[key]:+.3f} -> {after[key]:+.3f}" for key in ("without", "with")]
        print(f"{name:40}{cells[0]:>20}{cells[1]:>20}{facts['updates']:>9}")


def draw(content: Mapping[str, Any], path: Path) -> None:
    """From the start to the end of every variant, without the horizon and with it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    variants = content["variants"]
    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            1, 2, sharey=True, figsize=(9.0, 0.3 * len(variants) + 1.2)
        )
        titles = {"without": "horizon not told", "with": "horizon told"}
        for axes, (key, title) in zip(panels, titles.items(), strict=True):
            ends = [variants[n]["trained"][key] for n in variants if n.startswith("base")]
            axes.axvspan(min(ends), max(ends), color=colour("learned"), alpha=0.12, linewidth=0)
            for place, (name, facts) in enumerate(variants.items()):
                drawn = colour("learned") if name.startswith("base") else colour("adam")
                before, after = facts["not_trained"][key], facts["trained"][key]
                axes.plot([before, after], [place, place], color=drawn, linewidth=1.2, alpha=0.6)
                axes.plot(before, place, "o", color=drawn, markersize=4, markerfacecolor="white")
                axes.plot(after, place, "o", color=drawn, markersize=5)
            axes.set_title(title)
            axes.set_xlabel("mean log(final loss / tuned Adam's)")
        panels[0].set_yticks(range(len(variants)), list(variants))
        panels[0].invert_yaxis()
        figure.suptitle("Hollow: the start. Filled: after the same CPU time. Shaded: two seeds")
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ablations of the rule `default`.")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of JSON and picture")
    parser.add_argument("--redraw", action="store_true", help="measure nothing")
    parser.add_argument("--again", action="store_true", help=f"run everything {ANEW}")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="CPU time of each variant")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.output / "default_ablations.json"
    if arguments.again:
        path.unlink(missing_ok=True)
    if not arguments.redraw:
        tell_of_kept(path)
        measure(path, arguments.seconds)
    content = json.loads(path.read_text(encoding="utf-8"))
    show(content)
    draw(content, path.with_suffix(".png"))
    print(f"Written: {path} and {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
