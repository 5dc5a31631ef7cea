"""Runs of 10 to 200 steps, where a warm-up and a gentle start are most of the run.

    python -m benchmarks.short_runs             about three minutes of one core
    python -m benchmarks.short_runs --redraw    the table and the picture from the JSON

`default` without and with `total_steps` on the families of `META_VALIDATION`, three runs of each,
against the best of 15 Adam rates, chosen for each problem and length on these very runs. Final
loss: the mean over the last tenth. Ratios are geometric means, each run's clipped to [0.1, 10]
after adding 1e-5 of the loss at the start to both. That short runs told their length take longer
steps was chosen on draws of the training families and the digits of the demo, not on these.
Writes results/short_runs.json and .png.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.default_ablations import log_ratios
from benchmarks.paper import report
from benchmarks.plotting import STYLE, colour
from benchmarks.results import provenance, write_json
from learned_optim.meta_training.baseline import loss_curve, tuned_adam
from learned_optim.meta_training.seeding import derive_seed, generator
from learned_optim.meta_training.unroll import Runs
from learned_optim.tasks.base import TaskFamily
from learned_optim.tasks.splits import META_VALIDATION
from learned_optim.weights import LoadedRule, load_bundled

LENGTHS = (10, 20, 50, 100, 200)
RUNS, TAIL = 3, 0.1


def ratios(name: str, family: TaskFamily, steps: int, rule: LoadedRule) -> dict[str, float]:
    """The final loss over tuned Adam's, without and with the horizon."""
    task = family.sample(generator("short", name))
    seeds = [derive_seed("short", name, run) for run in range(RUNS)]
    adam = tuned_adam(task, seeds, steps, TAIL)[0]

    def ratio(told: int | None) -> float:
        curve = loss_curve(rule.rule, rule.weights, Runs(task, seeds), steps, told)
        return math.exp(float(log_ratios(curve, adam, TAIL).mean()))

    return {"without": ratio(None), "with": ratio(steps)}


def measure(path: Path) -> None:
    """Every family at every length."""
    torch.set_num_threads(1)
    rule = load_bundled("default")
    found = {
        str(steps): {
            name: ratios(name, family, steps, rule) for name, family in META_VALIDATION.items()
        }
        for steps in tqdm(LENGTHS, desc="lengths")
    }
    write_json(path, {"weights_sha256": rule.sha256, "lengths": found, **provenance()})


def mean(problems: Mapping[str, Mapping[str, float]], key: str) -> float:
    """Geometric, over the problems."""
    return math.exp(sum(math.log(facts[key]) for facts in problems.values()) / len(problems))


def show(content: Mapping[str, Any]) -> None:
    """A line for each problem, a pair of columns for each length."""
    lengths = content["lengths"]
    print(f"{'final loss / tuned Adam':24}" + "".join(f"{f'{n} steps':>19}" for n in lengths))
    names = next(iter(lengths.values()))
    rows = {name: {n: problems[name] for n, problems in lengths.items()} for name in names}
    rows["geometric mean"] = {
        n: {key: mean(problems, key) for key in ("without", "with")}
        for n, problems in lengths.items()
    }
    for name, row in rows.items():
        cells = [f"{facts['without']:.2f}, told {facts['with']:.2f}" for facts in row.values()]
        print(f"{name:24}" + "".join(f"{cell:>19}" for cell in cells))


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Each problem's ratio by the length of the run, told and not."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lengths = {int(n): problems for n, problems in content["lengths"].items()}
    titles = {"without": "horizon not told", "with": "horizon told"}
    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(1, 2, sharey=True, figsize=(9.0, 3.4))
        for axes, (key, title) in zip(panels, titles.items(), strict=True):
            for name in next(iter(lengths.values())):
                line = [problems[name][key] for problems in lengths.values()]
                axes.plot([*lengths], line, color=colour("learned"), alpha=0.3, linewidth=1.0)
                axes.annotate(name, (max(lengths), line[-1]), fontsize=6, va="center")
            means = [mean(problems, key) for problems in lengths.values()]
            axes.plot([*lengths], means, "o-", color=colour("learned"), linewidth=2.2)
            axes.axhline(1.0, color=colour("adam"), linewidth=1.0)
            axes.set(xscale="log", yscale="log", title=title, xlabel="steps")
            axes.set_xticks([*lengths], [str(n) for n in lengths])
            axes.minorticks_off()
        panels[0].set_ylabel("final loss / tuned Adam's")
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        pyplot.close(figure)


def main() -> None:
    report.script(__doc__ or "", "short_runs", measure, draw, show)


if __name__ == "__main__":
    main()
