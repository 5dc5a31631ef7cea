"""Where the faithful rule fails: other activations, longer runs, steeper functions.

    python -m benchmarks.paper.failures            every case that the JSON lacks
    python -m benchmarks.paper.failures --again    all of them

The paper shows one of these failures (ReLU); Chen et al. 2020 show that the rule, trained on short
runs of an MNIST network, is best near step 500 of 10,000 and then returns to chance. The rules are
used as they are: `l2l-mnist` on ReLU, and on its own sigmoid network for 1000 and 10,000 steps;
`l2l-quadratic` with W times 3 and times 10, where gradients are 9 and 100 times as large. Beside
them stand Adam, at the rate tuned for the *unchanged* task and so as untuned for the change as the
rule, and `default`; on the longer runs Adam at the best of `LONG_RATES` too, chosen with hindsight
on these very runs. Their losses are means over the last 20 steps, as single minibatches are noisy.

The JSON is written after each case, and a case that is there for the same weights is not run again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.baselines import Sweep
from benchmarks.learned import Learned
from benchmarks.paper import report
from benchmarks.paper.trajectories import label
from benchmarks.plotting import STYLE, colour
from benchmarks.results import provenance, write_json
from benchmarks.runs import Problem, Stepper, run
from benchmarks.statistics import curve, summary
from benchmarks.tuning import baseline_path
from learned_optim.tasks import MnistMLP, Quadratic, TaskFamily
from learned_optim.weights import LoadedRule, load_bundled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONG = 200  # steps; beyond, curves are log-spaced
TUNED = "adam_tuned"
LONG_RATES = tuple(10 ** (-1.5 - k / 4) for k in range(7))
_DRAWN = 201  # points of a curve in the JSON, log-spaced if the run is longer


@dataclass(frozen=True)
class Failure:
    """One way to leave what the rule was trained on.

    Attributes:
        title: for people.
        rule: the bundled rule.
        family: the changed task.
        rates: file of the rates tuned for the unchanged one.
        steps: of each run.
        runs: how many.
        block: stepped together.
        marks: steps whose losses are given.
    """

    title: str
    rule: str
    family: TaskFamily
    rates: str
    steps: int
    runs: int
    block: int
    marks: tuple[int, ...]

    @property
    def is_long(self) -> bool:
        """Whether it is a longer run, not another task."""
        return self.steps > LONG

    @property
    def tail(self) -> int:
        """Steps that a loss is the mean of."""
        return 20 if self.is_long else 1

    def problem(self) -> Problem:
        """The test runs."""
        task = self.family.sample(torch.Generator())
        return Problem(task, self.runs, self.steps, "test", self.block)


CASES: dict[str, Failure] = {
    "quadratic_x3": Failure(
        "W x 3", "l2l-quadratic", Quadratic(gain=3.0), "quadratic", 100, 1024, 1024, (100,)
    ),
    "quadratic_x10": Failure(
        "W x 10", "l2l-quadratic", Quadratic(gain=10.0), "quadratic", 100, 1024, 1024, (100,)
    ),
    "relu": Failure(
        "MNIST, ReLU", "l2l-mnist", MnistMLP(activation="relu"), "mnist_base", 100, 20, 5, (20, 100)
    ),
    "steps_1000": Failure(
        "MNIST, 1000 steps", "l2l-mnist", MnistMLP(), "mnist_base", 1000, 20, 5, (100, 300, 1000)
    ),
    "steps_10000": Failure(
        "MNIST, 10,000 steps",
        "l2l-mnist",
        MnistMLP(),
        "mnist_base",
        10_000,
        4,
        4,
        (100, 1000, 3000, 10_000),
    ),
}


def shown_steps(steps: int) -> list[int]:
    """Which steps a curve is kept at: all of a short run, log-spaced ones of a long run."""
    if steps <= LONG:
        return list(range(steps + 1))
    spaced = torch.logspace(0, torch.tensor(steps).log10().item(), _DRAWN).round().int()
    return sorted({0, *spaced.tolist()})


def examine(case: Failure, entries: Mapping[str, Callable[[], Stepper]], name: str) -> dict:
    """One case, ready for JSON: curves and, at the marks, summaries of every entry."""
    started = time.process_time()
    steps = shown_steps(case.steps)
    results: dict[str, Any] = {}
    for entry, make_stepper in entries.items():
        found = run(case.problem(), make_stepper, progress=f"{name}, {entry}").losses
        # A loss that is not finite counts as infinite, so that no run drops out.
        found = found.nan_to_num(torch.inf)
        best = int(found[..., -case.tail :].mean(-1).mean(0).argmin())
        losses = found[:, best]
        results[entry] = {
            "curve": curve(losses[:, steps]),
            "marks": {str(mark): _summary(losses, mark, case.tail) for mark in case.marks},
            "best_step": int(losses.median(0).values.argmin()),
        }
        if entry == TUNED:
            results[entry]["rate"] = LONG_RATES[best]
    return {
        "title": case.title,
        "runs": case.runs,
        "steps": steps,
        "entries": results,
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def _summary(losses: torch.Tensor, mark: int, tail: int) -> dict[str, Any]:
    start, found = losses[:, 0].median(), losses[:, mark + 1 - tail : mark + 1].mean(1)
    return summary(found) | {"above_start": int((found > start).sum())}


def contenders(case: Failure, rules: Mapping[str, LoadedRule]) -> dict[str, Callable[[], Stepper]]:
    """Adam, the rule, and `default`, which long runs would take an hour: there a tuned Adam."""
    tuned = json.loads(baseline_path(case.rates).read_text(encoding="utf-8"))["tuned"]
    rate = tuned["adam"]["rate"]
    entries: dict[str, Callable[[], Stepper]] = {
        "adam": lambda: Sweep({"adam": [rate]}),
        "l2l": lambda: Learned(rules[case.rule]),
    }
    if case.is_long:
        return {"adam": entries["adam"], TUNED: lambda: Sweep({"adam": LONG_RATES}), **entries}
    return entries | {"default": lambda: Learned(rules["default"])}


def title(entry: str) -> str:
    """An entry's name for people."""
    return "Adam, best rate here" if entry == TUNED else label(entry)


def measure(path: Path, cases: Mapping[str, Failure] = CASES) -> None:
    """Run the cases that `path` lacks for today's weights, and write after each."""
    names = sorted({case.rule for case in cases.values()} | {"default"})
    rules = {name: load_bundled(name) for name in names}
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    done: dict[str, Any] = dict(saved.get("failures", {}))
    for name, case in cases.items():
        entries = contenders(case, rules)
        used = {case.rule, *({"default"} & entries.keys())}
        sha256 = {key: rules[key].sha256 for key in sorted(used)}
        if done.get(name, {}).get("weights_sha256") == sha256:
            continue
        done[name] = examine(case, entries, name) | {"rule": case.rule, "weights_sha256": sha256}
        ordered = {known: done[known] for known in cases if known in done}
        seconds = {"cpu_seconds": sum(one["cpu_seconds"] for one in ordered.values())}
        write_json(path, {"failures": ordered, **provenance(), **seconds})


def show(content: Mapping[str, Any]) -> None:
    """Print medians, and how many runs stand above their start, at the marks."""
    for case in content["failures"].values():
        print(f"\n{case['title']}: median loss, {case['runs']} runs (above the start in brackets)")
        for entry, facts in case["entries"].items():
            marks = "  ".join(
                f"{mark}: {report.number(at['median'])} ({at['above_start']})"
                for mark, at in facts["marks"].items()
            )
            print(f"{title(entry):22}{marks}  best at {facts['best_step']}")


def _panel(axes: Axes, case: Mapping[str, Any]) -> None:
    long = case["steps"][-1] > LONG
    steps = [max(step, 0.7) for step in case["steps"]] if long else case["steps"]
    top = case["entries"]["adam"]["curve"]["median"][0] * 30
    for entry, facts in case["entries"].items():
        rows = {
            key: [top if value is None else min(value, top) for value in facts["curve"][key]]
            for key in ("median", "lower", "upper")
        }
        width = 2.2 if entry == "l2l" else 1.3
        dash = "--" if entry == TUNED else "-"
        hue = colour("adam" if entry == TUNED else entry)
        name = title(entry)
        axes.plot(steps, rows["median"], dash, color=hue, linewidth=width, label=name)
        axes.fill_between(steps, rows["lower"], rows["upper"], color=hue, alpha=0.13, linewidth=0)
    axes.set_yscale("log")
    if long:
        axes.set_xscale("log")
    axes.set_title(f"{case['title']} ({case['runs']} runs)", fontsize=9)
    axes.set_xlabel("step")


def draw(content: Mapping[str, Any], path: Path) -> None:
    """A panel for each case, median and quartiles, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = list(content["failures"].values())
    with pyplot.rc_context(STYLE):
        figure, grid = pyplot.subplots(2, 3, figsize=(10, 5.4))
        panels = list(grid.flat)
        for axes, case in zip(panels, cases, strict=False):
            _panel(axes, case)
        for line in grid:
            line[0].set_ylabel("loss")
        for axes in panels[len(cases) :]:
            axes.axis("off")
        named = {}
        for axes in panels[: len(cases)]:
            handles, labels = axes.get_legend_handles_labels()
            named |= dict(zip(labels, handles, strict=True))
        panels[-1].legend(named.values(), named.keys(), loc="center")
        caption = "Median and quartiles; Adam at the rate tuned for the unchanged task"
        figure.text(0.01, 0.005, caption, fontsize=7, color="#666666")
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        pyplot.close(figure)


def main() -> None:
    report.script(__doc__ or "", "paper_failures", measure, draw, show, resumes=True)


if __name__ == "__main__":
    main()
