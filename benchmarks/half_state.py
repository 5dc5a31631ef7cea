"""Does a training end where it did, with the state of the paper's rule in float16?

    python -m benchmarks.half_state             run it
    python -m benchmarks.half_state --redraw    the picture from the JSON

Two bundled rules on the problems that they were trained for, and on runs twenty times as long, by
the real `LearnedOptimizer`: once with its state in float32, once `with_half_state`, on AVX-512 and
on AVX2, whose arithmetic in 16 bits is not the same; and, as the yardstick, in float32 with sums in
another order (`LEARNED_OPTIM_ISA=baseline`): single runs part under any rounding. The same starts
and minibatches for all; a quarter of an hour. Writes results/half_state.json and .png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.learned import Learned
from benchmarks.plotting import STYLE
from benchmarks.results import RESULTS, provenance, write_json
from benchmarks.runs import Problem, run
from benchmarks.statistics import ratio, summary
from benchmarks.step_contenders import instructions
from learned_optim import LoadedRule, kernels, load_rule, with_half_state
from learned_optim.kernels import native
from learned_optim.tasks import MnistMLP, Quadratic, TaskFamily

FULL, OTHER, HALF = "float32", "float32, sums in another order", "float16"
NARROW = "float16, AVX2"  # whose tables are other ones
TAIL = 0.05  # of a run, whose mean loss is where it ends


@dataclass(frozen=True)
class Trial:
    """Runs of one problem under one bundled rule."""

    title: str
    rule: str
    family: TaskFamily
    steps: int
    runs: int
    block: int


TRIALS = [
    Trial("MNIST, 100 steps", "l2l-mnist", MnistMLP(), 100, 100, 5),
    Trial("MNIST, 2000 steps", "l2l-mnist", MnistMLP(), 2000, 20, 5),
    Trial("quadratics, 100 steps", "l2l-quadratic", Quadratic(), 100, 1024, 1024),
    Trial("quadratics, 2000 steps", "l2l-quadratic", Quadratic(), 2000, 256, 256),
]


def precisions(full: LoadedRule) -> list[tuple[str, LoadedRule, str | None]]:
    """Name, rule and instruction set, None for the best."""
    half = with_half_state(full)
    found = [(FULL, full, None), (OTHER, full, "baseline"), (HALF, half, None)]
    wide = native.LEVELS[native.best_level()] == "avx512"
    return [*found, (NARROW, half, "avx2")] if wide else found


def ends(trial: Trial) -> dict[str, Tensor]:
    """Where the runs end, `(runs,)`, by precision."""
    task = trial.family.sample(torch.Generator())
    problem = Problem(task, trial.runs, trial.steps, "test", trial.block)
    found = {}
    for name, rule, isa in precisions(load_rule(trial.rule)):
        with instructions(isa):
            losses = run(
                problem, lambda rule=rule: Learned(rule), progress=f"{trial.title}, {name}"
            )
        last = max(1, round(TAIL * trial.steps))
        found[name] = losses.losses[:, 0, -last:].mean(-1)
    return found


def judged(trial: Trial, found: Mapping[str, Tensor]) -> dict[str, Any]:
    """The JSON of one trial: each precision against float32."""
    return {
        "title": trial.title,
        "rule": trial.rule,
        "runs": trial.runs,
        FULL: summary(found[FULL]),
        "ends": {
            name: [float(f"{x:.5g}") for x in values.tolist()] for name, values in found.items()
        },
        "against": {
            name: ratio(found[name], found[FULL])
            | {"part_by": (found[name] / found[FULL]).log().abs().median().item()}
            for name in found
            if name != FULL
        },
    }


def measure(path: Path, trials: list[Trial] = TRIALS) -> None:
    """Run all trials and write the JSON."""
    torch.set_num_threads(1)
    if not kernels.available():
        raise SystemExit(f"nothing to compare: {kernels.why_not()}")
    done = [judged(trial, ends(trial)) for trial in trials]
    extra = {"instruction_set": native.LEVELS[native.level()]}
    write_json(path, {"half_state": done, **extra, **provenance()})


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Each run's end in float16 over that in float32, beside that of the yardstick."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    trials = content["half_state"]
    with plt.rc_context(STYLE):
        size = (3.1 * len(trials), 3.2)
        figure, axes = plt.subplots(1, len(trials), figsize=size, squeeze=False)
        for ax, trial in zip(axes[0], trials, strict=True):
            full = trial["ends"][FULL]
            colours = {OTHER: "#9aa0a6", NARROW: "#2a6f97", HALF: "#c8102e"}
            for name in (name for name in colours if name in trial["ends"]):
                colour = colours[name]
                ax.plot(full, trial["ends"][name], ".", color=colour, markersize=4, label=name)
            line = [min(full), max(full)]
            ax.plot(line, line, color="#2b2d42", linewidth=0.7)
            scale = "log" if max(full) > 10 * min(full) else "linear"
            ax.set(xscale=scale, yscale=scale, title=trial["title"], xlabel="final loss, float32")
        axes[0, 0].set_ylabel("final loss otherwise")
        axes[0, 0].legend(fontsize=7, loc="lower right")
        figure.tight_layout()
        figure.savefig(path)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--redraw", action="store_true", help="the picture from the JSON")
    path = RESULTS / "half_state.json"
    if not parser.parse_args().redraw:
        measure(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    for trial in content["half_state"]:
        print(trial["title"], {name: facts["mean"] for name, facts in trial["against"].items()})
    draw(content, path.with_suffix(".png"))
    print(f"Written: {path} and {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
