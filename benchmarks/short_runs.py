"""Runs of 10 to 200 steps, where a warm-up and a gentle start are most of the run.

    python -m benchmarks.short_runs             about half an hour of one core
    python -m benchmarks.short_runs --redraw    the table and the picture from the JSON

`default` without and with `total_steps`: on the families of `META_VALIDATION` from scratch, and on
the networks that `benchmarks.generalization --split fine_tuning` goes on with. Three runs of each,
against the best of 21 Adam rates, chosen for each problem and length on these very runs (none at an
end of the grid, but on one text that was known already the lowest). Final
loss: the mean over the last tenth. Ratios are geometric means, each run's clipped to [0.1, 10]
after adding 1e-5 of the loss at the start to both. What `default` does in short runs was chosen on
draws of the training families and the digits of the demo, not on these; but that trained and deep
networks should be among those draws was concluded from three and from two of the problems here.
Writes results/short_runs.json and .png.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.default_ablations import log_ratios
from benchmarks.general.items import SPLITS
from benchmarks.paper import report
from benchmarks.plotting import STYLE, colour
from benchmarks.results import provenance, write_json
from learned_optim.meta_training import baseline
from learned_optim.meta_training.baseline import loss_curve, tuned_adam
from learned_optim.meta_training.seeding import derive_seed, generator
from learned_optim.meta_training.unroll import Runs
from learned_optim.tasks.base import TaskFamily
from learned_optim.tasks.splits import META_VALIDATION
from learned_optim.weights import LoadedRule, load_bundled

LENGTHS = (10, 20, 50, 100, 200)
RUNS, TAIL = 3, 0.1
# Few steps want rates that many would not bear.
RATES = (*baseline.RATES, *(10 ** (k / 4) for k in range(-1, 5)))
# The lists, by their keys in the JSON, and what each entry of a problem is.
LISTS = {"lengths": "from scratch", "fine_tuning": "fine-tuning"}
ENTRIES = {"without": "not told", "with": "told"}

Problems = Mapping[str, Mapping[str, float]]


def families(key: str) -> dict[str, TaskFamily]:
    """The problems of a list."""
    if key == "lengths":
        return META_VALIDATION
    return {item.name: item.family for item in SPLITS[key]}


def ratios(name: str, family: TaskFamily, steps: int, rule: LoadedRule) -> dict[str, float]:
    """The final loss over tuned Adam's, without and with the horizon; and Adam's rate."""
    task = family.sample(generator("short", name))
    seeds = [derive_seed("short", name, run) for run in range(RUNS)]
    adam, rate = tuned_adam(task, seeds, steps, TAIL, RATES)

    def ratio(told: int | None) -> float:
        curve = loss_curve(rule.rule, rule.weights, Runs(task, seeds), steps, told)
        return math.exp(float(log_ratios(curve, adam, TAIL).mean()))

    return {"without": ratio(None), "with": ratio(steps), "adam_rate": rate}


def measure(path: Path) -> None:
    """Every problem at every length."""
    torch.set_num_threads(1)
    rule = load_bundled("default")
    jobs = [(key, steps, name) for key in LISTS for steps in LENGTHS for name in families(key)]
    found: dict[str, Any] = {key: {str(steps): {} for steps in LENGTHS} for key in LISTS}
    for key, steps, name in tqdm(jobs, desc="short runs"):
        found[key][str(steps)][name] = ratios(name, families(key)[name], steps, rule)
    write_json(path, {"weights_sha256": rule.sha256, **found, **provenance()})


def mean(problems: Problems, key: str) -> float:
    """Geometric, over the problems."""
    return math.exp(sum(math.log(facts[key]) for facts in problems.values()) / len(problems))


def show(content: Mapping[str, Any]) -> None:
    """A line for each problem, a pair of columns for each length: not told and told."""
    for key, label in LISTS.items():
        lengths = content[key]
        head = f"{label}: final loss / tuned Adam"
        print(f"{head:46}" + "".join(f"{f'{n} steps':>18}" for n in lengths))
        for name in next(iter(lengths.values())):
            _line(name, [problems[name] for problems in lengths.values()])
        means = [{e: mean(problems, e) for e in ENTRIES} for problems in lengths.values()]
        _line("geometric mean", means)


def _line(name: str, row: Sequence[Mapping[str, float]]) -> None:
    cells = [" ".join(f"{facts[entry]:5.2f}" for entry in ENTRIES) for facts in row]
    print(f"{name:46}" + "".join(f"{cell:>18}" for cell in cells))


def apart(values: Mapping[str, float], factor: float = 1.17) -> dict[str, float]:
    """Where labels of these values stand on a logarithmic axis so that none covers another."""
    places: dict[str, float] = {}
    least = 0.0
    for name in sorted(values, key=values.__getitem__):
        places[name] = max(values[name], least)
        least = places[name] * factor
    return places


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Each problem's ratio by the length of the run, and their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [(key, entry) for key in LISTS for entry in ENTRIES]
    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(1, len(shown), sharey=True, figsize=(15.0, 3.6))
        for axes, (key, entry) in zip(panels, shown, strict=True):
            lengths = {int(n): problems for n, problems in content[key].items()}
            names = next(iter(lengths.values()))
            lines = {name: [p[name][entry] for p in lengths.values()] for name in names}
            places = apart({name: line[-1] for name, line in lines.items()})
            for name, line in lines.items():
                axes.plot([*lengths], line, color=colour("learned"), alpha=0.3, linewidth=1.0)
                axes.annotate(name, (max(lengths) * 1.08, places[name]), fontsize=6, va="center")
            means = [mean(problems, entry) for problems in lengths.values()]
            axes.plot([*lengths], means, "o-", color=colour("learned"), label="default")
            axes.axhline(1.0, color=colour("adam"), linewidth=1.0, label="tuned Adam")
            title = f"{LISTS[key]}, total_steps {ENTRIES[entry]}"
            axes.set(xscale="log", yscale="log", title=title, xlabel="steps")
            axes.set_xticks([*lengths], [str(n) for n in lengths])
            axes.minorticks_off()
        panels[0].set_ylabel("final loss / tuned Adam's")
        panels[-1].legend(frameon=False, fontsize=7, loc="lower left")
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        pyplot.close(figure)


def main() -> None:
    report.script(__doc__ or "", "short_runs", measure, draw, show)


if __name__ == "__main__":
    main()
