"""Paths over three surfaces: what does the learned rule do where one can watch?

    python -m benchmarks.paper.trajectories

f = x^2 / 20 + y^2 (steep along one axis), Rosenbrock's banana, Rastrigin's egg box; 100 steps of
five hand-written optimizers, each at the rate of a grid of 8 a decade that has the least sum of
losses from this very start (the least last loss picks rates that throw the path far out first),
and of two learned rules, which have no rate: `l2l-quadratic` and `default`. One start a surface: a
picture, not a claim. Neither rule was trained on surfaces of two dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.baselines import Sweep
from benchmarks.learned import Learned
from benchmarks.paper import report
from benchmarks.plotting import STYLE, colour
from benchmarks.results import provenance, write_json
from benchmarks.runs import Problem, Stepper, run
from benchmarks.tuning import Grid
from learned_optim.tasks import Batch, Params, Task
from learned_optim.weights import load_bundled

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

STEPS = 100
GRID = Grid(
    {
        "sgd": (-4, 0),
        "momentum": (-5, 0),
        "adagrad": (-2, 1),
        "rmsprop": (-3, 0),
        "adam": (-3, 0.5),
    },
    per_decade=8,
)
LEARNED = {"l2l": "l2l-quadratic", "default": "default"}


@dataclass(frozen=True)
class Surface(Task):
    """A function of `theta` `(2,)`, its start, and the window to draw.

    Attributes:
        title: in the picture.
        function: `(x, y)` -> f, elementwise.
        start: of every path.
        lowest: its minimum, where f = 0.
        window: left, right, bottom, top.
    """

    title: str
    function: Callable[[Tensor, Tensor], Tensor]
    start: tuple[float, float]
    lowest: tuple[float, float]
    window: tuple[float, float, float, float]

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """See `Task`; nothing is random."""
        return {"theta": torch.tensor(self.start)}, {}

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """See `Task`."""
        return self.function(*params["theta"].unbind(-1))


def bowl(x: Tensor, y: Tensor) -> Tensor:
    """Elongated twenty to one."""
    return x.square() / 20 + y.square()


def rosenbrock(x: Tensor, y: Tensor) -> Tensor:
    """Rosenbrock 1960: a curved valley with a flat floor."""
    return (1 - x).square() + 100 * (y - x.square()).square()


def rastrigin(x: Tensor, y: Tensor) -> Tensor:
    """Rastrigin 1974: a bowl with a local minimum near every point of the integer lattice."""
    return sum((10 + v.square() - 10 * torch.cos(2 * math.pi * v) for v in (x, y)), torch.zeros(()))


SURFACES: dict[str, Surface] = {
    "bowl": Surface("x²/20 + y²", bowl, (-7.0, 2.0), (0, 0), (-8, 3, -3, 3)),
    "rosenbrock": Surface("Rosenbrock", rosenbrock, (-1.2, 1.0), (1, 1), (-2, 2, -1, 3)),
    "rastrigin": Surface("Rastrigin", rastrigin, (-2.6, 1.8), (0, 0), (-4.0, 1.0, -1.0, 4.0)),
}


def paths(surface: Surface, make_stepper: Callable[[], Stepper]) -> tuple[Tensor, Tensor]:
    """Positions `(K, STEPS + 1, 2)` and losses `(K, STEPS + 1)` of all copies of the stepper."""
    found = run(
        Problem(surface, 1, STEPS, "trajectories", 1),
        make_stepper,
        # Cloned, as the steps are in place.
        measure=lambda params: dict(zip("xy", params["theta"].clone().unbind(-1), strict=True)),
        measure_at=tuple(range(STEPS + 1)),
    )
    points = [torch.stack([at["x"][0], at["y"][0]], -1) for at in found.measured.values()]
    return torch.stack(points, 1), found.losses[0]


def measure() -> dict[str, Any]:
    """Every surface with every path, ready for JSON."""
    rules = {entry: load_bundled(name) for entry, name in LEARNED.items()}
    surfaces: dict[str, Any] = {}
    for name, surface in SURFACES.items():
        entries = {}
        for baseline in GRID.ranges:
            rates = GRID.rates(baseline)
            points, losses = paths(surface, lambda b=baseline, r=rates: Sweep({b: r}))
            best = int(losses.sum(1).nan_to_num(math.inf).argmin())
            entries[baseline] = _entry(points[best], losses[best], rates[best])
        for entry, rule in rules.items():
            points, losses = paths(surface, lambda rule=rule: Learned(rule))
            entries[entry] = _entry(points[0], losses[0], None)
        surfaces[name] = {"title": surface.title, "entries": entries}
    hashes = {entry: rule.sha256 for entry, rule in rules.items()}
    return {"steps": STEPS, "weights_sha256": hashes, "surfaces": surfaces, **provenance()}


def _entry(points: Tensor, losses: Tensor, rate: float | None) -> dict[str, Any]:
    x, y = ([float(f"{value:.4g}") for value in row.tolist()] for row in points.unbind(-1))
    return {"rate": rate, "final": losses[-1].item(), "x": x, "y": y}


def label(entry: str) -> str:
    """An entry's name for people."""
    return {"l2l": "L2L, learned", "default": "default"}.get(entry) or report.label(entry)


def _background(axes: Axes, surface: Surface) -> None:
    """Shades of log f, and a cross at the minimum."""
    left, right, bottom, top = surface.window
    x, y = torch.linspace(left, right, 220), torch.linspace(bottom, top, 220)
    columns, rows = torch.meshgrid(x, y, indexing="xy")
    height = (surface.function(columns, rows) + 0.03).log()
    axes.contourf(x, y, height, levels=30, cmap="Blues", alpha=0.28)
    axes.contour(x, y, height, levels=10, colors="#b9c4d0", linewidths=0.4)
    axes.plot(*surface.lowest, "+", color="black", markersize=9, zorder=5)
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], title=surface.title)


def draw(content: Mapping[str, Any], path: Path) -> None:
    """The three surfaces side by side, as a PNG; each path ends in a dot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({**STYLE, "axes.grid": False}):
        figure, panels = pyplot.subplots(1, 3, figsize=(11, 4.2))
        for axes, (name, surface) in zip(panels, content["surfaces"].items(), strict=True):
            _background(axes, SURFACES[name])
            for entry, facts in surface["entries"].items():
                learned = entry in LEARNED
                style = {"color": colour(entry), "linewidth": 2.0 if learned else 1.2}
                order = 4 if learned else 3
                axes.plot(facts["x"], facts["y"], **style, zorder=order, label=label(entry))
                end = [facts[key][-1:] for key in "xy"]
                axes.plot(*end, "o", color=colour(entry), markersize=5, zorder=order + 1)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=len(labels))
        caption = f"{content['steps']} steps; hand-written rates tuned for each surface, + minimum"
        figure.text(0.01, 0.965, caption, fontsize=7, color="#666666")
        figure.tight_layout(rect=(0, 0.07, 1, 0.97))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        pyplot.close(figure)


def show(content: Mapping[str, Any]) -> None:
    """Print where each path ends."""
    for surface in content["surfaces"].values():
        print(f"\n{surface['title']}, f after {content['steps']} steps")
        for entry, facts in surface["entries"].items():
            rate = "" if facts["rate"] is None else f"rate {facts['rate']:.3g}"
            print(f"{label(entry):14}{facts['final']:12.4g}  {rate}")


def main() -> None:
    report.script(
        __doc__ or "", "paper_trajectories", lambda path: write_json(path, measure()), draw, show
    )


if __name__ == "__main__":
    main()
