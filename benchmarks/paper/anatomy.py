"""What does the learned rule do with a gradient, and how does that change over a run?

    python -m benchmarks.paper.anatomy

The paper's picture of proposed updates (appendix). A rule runs on its own task; at some steps the
history stops, one coordinate is offered every gradient between -3 and 3 times the root mean square
that it has seen, and the step that the rule would take is drawn against it. Adam stands beside it,
at the rate tuned for the task, with the very same history of gradients. A straight line through
the origin is gradient descent; a flat one takes no notice of the size; a shift off the origin is
momentum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.paper import report
from benchmarks.plotting import STYLE, colour
from benchmarks.results import provenance, write_json
from benchmarks.tuning import baseline_path
from learned_optim.meta_training.seeding import derive_seed
from learned_optim.meta_training.unroll import Carry, Runs, advance, begin
from learned_optim.rules import Coordinates
from learned_optim.tasks import MnistMLP, Quadratic, TaskFamily
from learned_optim.weights import LoadedRule, load_bundled

if TYPE_CHECKING:
    from pathlib import Path

STEPS = (1, 5, 20, 50, 100)
POINTS = 81
_REACH = 3.0  # root mean squares to either side
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Subject:
    """A coordinate under the lens.

    Attributes:
        title: of its row in the picture.
        rule: a bundled rule.
        family: the task that it was trained on.
        rates: file of tuned rates that Adam's is taken from.
        param: name of the tensor.
        index: the coordinate's place in it, flattened.
    """

    title: str
    rule: str
    family: TaskFamily
    rates: str
    param: str
    index: int


SUBJECTS = (
    Subject("quadratic", "l2l-quadratic", Quadratic(), "quadratic", "theta", 0),
    Subject("MNIST, an output bias", "l2l-mnist", MnistMLP(), "mnist_base", "b1", 3),
    Subject("MNIST, a hidden weight", "l2l-mnist", MnistMLP(), "mnist_base", "w0", 5 * 784 + 406),
)


def adam_steps(history: Tensor, offered: Tensor, rate: float) -> Tensor:
    """Adam's step for each offered gradient `(P,)` after the gradients of `history` `(T,)`."""
    m = v = torch.zeros_like(offered)
    for grad in [*history.unbind(), offered]:
        m = _BETA1 * m + (1 - _BETA1) * grad
        v = _BETA2 * v + (1 - _BETA2) * grad**2
    step = len(history) + 1
    root = (v / (1 - _BETA2**step)).sqrt() + _EPS
    return -rate * m / (1 - _BETA1**step) / root


def rule_steps(rule: LoadedRule, carry: Carry, place: int, offered: Tensor) -> Tensor:
    """The rule's step for each offered gradient `(P,)`, from the state that a run has reached.

    Args:
        rule: coordinatewise, without signals, as the paper's.
        carry: of a single run.
        place: of the coordinate among all.
        offered: the gradients.
    """
    state = {
        key: value[0, :, place : place + 1].expand(-1, len(offered))
        for key, value in carry.state.items()
    }
    params = carry.theta[0, place].expand(len(offered))
    signals = offered.new_zeros(0, 1)
    return rule.rule.update(Coordinates(offered, params), state, signals, rule.weights)[0]


@torch.no_grad()
def examine(
    subject: Subject, rule: LoadedRule, rate: float, steps: Sequence[int] = STEPS
) -> list[dict[str, Any]]:
    """One panel for each of `steps`: gradients offered, the rule's steps, Adam's steps."""
    runs = Runs(subject.family.sample(torch.Generator()), [derive_seed("benchmark", "anatomy", 0)])
    layout, carry = begin(rule.rule, runs)
    before = sum(layout.sizes[: layout.names.index(subject.param)])
    place, history, panels = before + subject.index, [], []
    for step in range(1, max(steps) + 1):
        history.append(carry.grad[0, place])
        if step in steps:
            seen = torch.stack(history)
            reach = _REACH * float(seen.square().mean().sqrt().clamp_min(1e-12))
            offered = torch.linspace(-reach, reach, POINTS)
            panels.append(
                {
                    "step": step,
                    "gradient": _short(offered),
                    "learned": _short(rule_steps(rule, carry, place, offered)),
                    "adam": _short(adam_steps(seen[:-1], offered, rate)),
                }
            )
        carry = advance(rule.rule, rule.weights, runs, layout, carry)
    return panels


def _short(values: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]


def measure() -> dict[str, Any]:
    """All subjects, ready for JSON."""
    rows, hashes = [], {}
    for subject in SUBJECTS:
        rule = load_bundled(subject.rule)
        hashes[subject.rule] = rule.sha256
        tuned = json.loads(baseline_path(subject.rates).read_text(encoding="utf-8"))["tuned"]
        rate = tuned["adam"]["rate"]
        panels = examine(subject, rule, rate)
        rows.append({"title": subject.title, "adam_rate": rate, "panels": panels})
    return {"weights_sha256": hashes, "rows": rows, **provenance()}


def draw(content: Mapping[str, Any], path: Path) -> None:
    """A row for each coordinate, a column for each step, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = content["rows"]
    columns = len(rows[0]["panels"])
    with pyplot.rc_context({**STYLE, "font.size": 8}):
        size = (2.1 * columns, 1.9 * len(rows) + 0.5)
        figure, grid = pyplot.subplots(len(rows), columns, figsize=size, squeeze=False)
        for line, row in zip(grid, rows, strict=True):
            for axes, panel in zip(line, row["panels"], strict=True):
                for entry, name in (("adam", "Adam, tuned"), ("learned", "L2L, learned")):
                    width = 2.0 if entry == "learned" else 1.2
                    x, y = panel["gradient"], panel[entry]
                    axes.plot(x, y, color=colour(entry), linewidth=width, label=name)
                axes.axhline(0, color="#bbbbbb", linewidth=0.6)
                axes.axvline(0, color="#bbbbbb", linewidth=0.6)
                axes.set_title(f"step {panel['step']}", fontsize=8)
                axes.ticklabel_format(style="sci", scilimits=(-2, 3))
                axes.yaxis.get_offset_text().set_fontsize(6)
                axes.xaxis.get_offset_text().set_fontsize(6)
                axes.tick_params(labelsize=6)
            line[0].set_ylabel(f"{row['title']}\nproposed step", fontsize=8)
        for axes in grid[-1]:
            axes.set_xlabel("gradient")
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=2)
        figure.tight_layout(rect=(0, 0.06, 1, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        pyplot.close(figure)


def main() -> None:
    report.script(__doc__ or "", "paper_anatomy", lambda path: write_json(path, measure()), draw)


if __name__ == "__main__":
    main()
