"""Which parts of the paper's rule and of its training matter? Short runs on the quadratics.

    python -m benchmarks.paper.ablations           every variant that the JSON lacks
    python -m benchmarks.paper.ablations --again   all of them

Each variant changes one thing of the base (the recipe of `l2l-quadratic`, shortened): the cell, the
number of layers, the forget bias, preprocessing, the meta-loss, second derivatives, the unroll. All
get the same number of inner steps, 5000 of 64 functions, which is a thirtieth of the full recipe;
so this says what learns fast, not what is best in the end. An unroll of 5 makes four times as many
updates out of them as the base's 20, one of 100 a fifth. The best of 10 validations is kept, and
its mean loss at step 100 on 1024 test functions is given. One meta-seed each, but for the base,
which has three: their spread is the yardstick for every difference here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.learned import Learned
from benchmarks.paper import report
from benchmarks.plotting import STYLE, colour
from benchmarks.results import provenance, write_json
from benchmarks.runs import Problem, run
from benchmarks.statistics import curve, summary
from learned_optim.meta_training.outer_loop import MetaTrainer
from learned_optim.meta_training.recipe import Recipe
from learned_optim.meta_training.recipe_file import parse_recipe
from learned_optim.tasks import Quadratic
from learned_optim.weights import in_memory

INNER_STEPS = 5000
VALIDATIONS = 10

# Group -> variant -> what differs from the base. The base is drawn in every group.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "base": {"base": {}, "seed 1": {"seed": 1}, "seed 2": {"seed": 2}},
    "gradient": {"first order": {"estimator": {"second_derivatives": False}}},
    "layers": {"1 layer": {"rule": {"layers": 1}}, "3 layers": {"rule": {"layers": 3}}},
    "forget bias": {
        "bias 0": {"rule": {"forget_bias": 0.0}},
        "bias 2": {"rule": {"forget_bias": 2.0}},
    },
    "inputs": {"log and sign": {"rule": {"preprocess": "log_sign"}}},
    "meta-loss": {"final": {"meta_loss": {"name": "final"}}},
    "unroll": {
        "unroll 5": {"estimator": {"unroll": 5}},
        "unroll 10": {"estimator": {"unroll": 10}},
        "unroll 50": {"estimator": {"unroll": 50}},
        "unroll 100": {"estimator": {"unroll": 100}},
    },
    "cell": {
        "rnn": {"rule": {"cell": "rnn"}},
        "gru": {"rule": {"cell": "gru"}},
        "peephole": {"rule": {"cell": "peephole"}},
        "coupled": {"rule": {"cell": "coupled"}},
    },
}


def recipe(changes: Mapping[str, Any], inner_steps: int = INNER_STEPS, runs: int = 64) -> Recipe:
    """The base with `changes`, tables merged key by key."""
    table: dict[str, Any] = {
        "name": "ablation",
        "seed": 0,
        "rule": {"name": "l2l", "preprocess": "none", "scale": 1.0},
        "tasks": [{"family": "quadratic", "runs": runs}],
        "estimator": {"name": "tbptt", "unroll": 20, "second_derivatives": True},
        "meta_loss": {"name": "sum"},
        "outer": {"lr": 0.003, "final_lr": 0.1, "clip": 100.0},
        "validation": {"runs": 4 * runs, "steps": 100, "tail": 0.01},
    }
    for key, value in changes.items():
        table[key] = {**table[key], **value} if isinstance(value, Mapping) else value
    updates = max(VALIDATIONS, inner_steps // table["estimator"]["unroll"])
    table["outer"]["steps"] = updates
    table["validation"]["every"] = max(1, updates // VALIDATIONS)
    return parse_recipe(table)


def train(chosen: Recipe) -> MetaTrainer:
    """Meta-train to the end of the recipe."""
    trainer = MetaTrainer(chosen)
    while trainer.step_count < chosen.outer.steps:
        trainer.step()
        if trainer.step_count % chosen.validation.every == 0:
            trainer.validate()
    return trainer


def examine(chosen: Recipe, test_runs: int = 1024) -> dict[str, Any]:
    """One variant, ready for JSON."""
    started = time.process_time()
    trainer = train(chosen)
    spent = time.process_time() - started
    rule = in_memory(trainer.rule, trainer.best_weights, name="ablation")
    task = Quadratic().sample(torch.Generator())
    losses = run(Problem(task, test_runs, 100, "test", test_runs), lambda: Learned(rule)).losses
    losses = losses[:, 0].nan_to_num(torch.inf)
    return {
        "updates": chosen.outer.steps,
        "best_update": trainer.best_step,
        "final": summary(losses[:, -1]),
        "curve": {"median": curve(losses)["median"]},
        "training_cpu_seconds": round(spent, 1),
    }


def measure(path: Path) -> None:
    """Run the variants that `path` lacks, and write after each."""
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    done: dict[str, Any] = dict(saved.get("variants", {}))
    for group, variants in VARIANTS.items():
        for name, changes in variants.items():
            if name in done:
                continue
            done[name] = {"group": group, **examine(recipe(changes))}
            seconds = sum(one["training_cpu_seconds"] for one in done.values())
            ordered = {
                known: done[known]
                for names in VARIANTS.values()
                for known in names
                if known in done
            }
            content = {"inner_steps": INNER_STEPS, "variants": ordered, **provenance()}
            write_json(path, {**content, "cpu_seconds": round(seconds, 1)})


def show(content: Mapping[str, Any]) -> None:
    """Print a line for each variant."""
    for name, facts in content["variants"].items():
        low, high = (report.number(value) for value in facts["final"]["interval_95"])
        print(
            f"{facts['group']:12}{name:14}{report.number(facts['final']['mean']):>9}"
            f"  ({low} to {high})  {facts['training_cpu_seconds']:.0f} s"
        )


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Mean loss at step 100 of every variant with its interval, grouped, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    variants = content["variants"]
    seeds = [facts["final"]["mean"] for facts in variants.values() if facts["group"] == "base"]
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(6.4, 0.27 * len(variants) + 1.2))
        axes.axvspan(min(seeds), max(seeds), color=colour("learned"), alpha=0.1, linewidth=0)
        for place, facts in enumerate(variants.values()):
            base = facts["group"] == "base"
            drawn = colour("learned") if base else colour("adam")
            mean = facts["final"]["mean"]
            if mean is None:
                axes.text(max(seeds), place, " diverged", color=drawn, fontsize=7, va="center")
                continue
            low, high = (mean if end is None else end for end in facts["final"]["interval_95"])
            axes.plot([low, high], [place, place], color=drawn, linewidth=1.2, alpha=0.6)
            axes.plot(mean, place, "o", color=drawn, markersize=5)
        names = [
            name
            if facts["group"] in name or facts["group"] == "base"
            else f"{facts['group']}: {name}"
            for name, facts in variants.items()
        ]
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel("mean loss at step 100, 1024 test functions (95 % interval)")
        axes.set_title("Quadratics, short meta-training; shaded: three seeds of the base")
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        pyplot.close(figure)


def main() -> None:
    report.script(__doc__ or "", "paper_ablations", measure, draw, show, resumes=True)


if __name__ == "__main__":
    main()
