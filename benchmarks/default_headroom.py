"""What is left for the networks of `default` to learn? Its best constants, problem by problem.

    python -m benchmarks.default_headroom             every draw that the JSON lacks
    python -m benchmarks.default_headroom --again     all of them anew
    python -m benchmarks.default_headroom --redraw    the table and the picture from the JSON

A controller that chooses the pace, the memory of the momentum or the share of the matrix stage for
each problem is bounded by who knows which choice ends best. So each draw of the families of
`pretrained/default/recipe.toml` is trained under every one of `SETTINGS`, two runs each, and for
each axis the best setting is picked with hindsight: on one run, and judged on the other, both ways,
as the best of several noisy ends is low by luck. A gain is log(final loss / that of the constants
as they are), clipped to a factor of 10. Every other round of the families is told the horizon.
What this does not bound: settings that change within a run, and directions that no constant gives.
Writes results/default_headroom.json and .png. Draws in the JSON are kept while the constants are
the same; after a change of the rule's code, which nothing notices, begin `--again`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.default_ablations import RECIPE, log_ratios
from benchmarks.paper import report
from benchmarks.plotting import colour, panels
from benchmarks.results import provenance, write_json
from benchmarks.statistics import summary
from learned_optim.meta_training.baseline import loss_curve, tail_mean
from learned_optim.meta_training.recipe import TaskEntry
from learned_optim.meta_training.recipe_file import read_recipe
from learned_optim.meta_training.seeding import derive_seed, generator
from learned_optim.meta_training.truncation import LogUniform
from learned_optim.meta_training.unroll import Runs
from learned_optim.rules import Default, Weights
from learned_optim.rules.hand import HAND, HAND_SCALE, hand_weights
from learned_optim.weights import digest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROUNDS, RUNS, TAIL = 4, 2, 0.1
STEPS = LogUniform(250, 1000)
RULE = Default(hidden=0, controller=0)
AS_IS = "as it is"


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


def _times(factor: float, *, matrices: bool = True) -> tuple[float, ...]:
    """The two step sizes, times a factor."""
    of_matrices, of_others = HAND["log_step"]
    return of_matrices + math.log(factor) * matrices, of_others + math.log(factor)


# Axis -> setting -> the constants that it replaces, before they are scaled.
AXES: dict[str, dict[str, dict[str, tuple[float, ...]]]] = {
    "pace": {f"x {factor:g}": {"log_step": _times(factor)} for factor in (0.125, 0.25, 0.5, 2, 4)},
    "pace of vectors": {
        f"x {factor:.2g}": {"log_step": _times(factor, matrices=False)} for factor in (1 / 3, 3)
    },
    "first decay": {f"{beta}": {"logit_beta1": (_logit(beta),)} for beta in (0.4, 0.8)},
    "second decay": {f"{beta}": {"logit_beta2": (_logit(beta),)} for beta in (0.9, 0.97)},
    "matrix stage": {f"{share}": {"blend": (_logit(share),)} for share in (0.5, 0.97)},
    "fall": {
        f"x {factor}": {"power": tuple(factor * power for power in HAND["power"])}
        for factor in (0.5, 1.5)
    },
    "feedback": {
        "off": {"log_rate": (-30.0, -30.0)},
        "x 2": {"log_rate": tuple(rate + math.log(2) for rate in HAND["log_rate"])},
    },
}
# The first one is what the others are measured against.
SETTINGS: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {("", AS_IS): {}} | {
    (axis, name): change for axis, names in AXES.items() for name, change in names.items()
}


def weights() -> Weights:
    """The constants of every setting, `(K, *shape)` each."""
    sets = [
        hand_weights()
        | {f"hand.{key}": torch.tensor(value) / HAND_SCALE for key, value in change.items()}
        for change in SETTINGS.values()
    ]
    return {key: torch.stack([found[key] for found in sets]) for key in sets[0]}


def gains(curve: Tensor) -> Tensor:
    """Log ratios of the ends to that of the first setting, `(R, K)`, clipped to a factor of 10.

    Args:
        curve: losses from the start on, `(steps + 1, R, K)`; where an end is no number, the gain is
            the worst.
    """
    return log_ratios(curve, tail_mean(curve, TAIL)[:, :1], TAIL)


def examine(entry: TaskEntry, index: int, steps: LogUniform, *, told: bool) -> dict[str, Any]:
    """One draw under every setting, ready for JSON."""
    task = entry.family.sample(generator("headroom", index, "task"))
    length = steps.sample(generator("headroom", index, "steps"))
    seeds = [derive_seed("headroom", index, "run", run) for run in range(RUNS)]
    runs = Runs(task, seeds, perturbations=len(SETTINGS))
    curve = loss_curve(RULE, weights(), runs, length, length if told else None)
    rows = [[round(value, 4) for value in row] for row in gains(curve).tolist()]
    return {"family": entry.label, "steps": length, "told": told, "gains": rows}


def measure(path: Path, rounds: int = ROUNDS, steps: LogUniform = STEPS) -> None:
    """Run the draws that `path` lacks, and write after each; anew if the constants have changed."""
    entries = read_recipe(RECIPE).tasks
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = [" ".join(setting).strip() for setting in SETTINGS]
    made_with = {"weights_sha256": digest(hand_weights()), "settings": names}
    draws: list[dict[str, Any]] = saved["draws"] if made_with.items() <= saved.items() else []
    for index in tqdm(range(len(draws), rounds * len(entries)), desc="draws"):
        turn, place = divmod(index, len(entries))
        draws.append(examine(entries[place], index, steps, told=turn % 2 == 1))
        write_json(path, {**made_with, "draws": draws, **provenance()})


def with_hindsight(found: Tensor, columns: list[int]) -> float:
    """The mean gain of the setting that is best on the other run.

    Args:
        found: gains, `(2, K)`.
        columns: the settings to choose from.
    """
    allowed = found[:, columns]
    best = allowed.argmin(1)
    return float(torch.stack([allowed[1, best[0]], allowed[0, best[1]]]).mean())


def table(draws: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Axis (and "all of them") -> the gain with hindsight of each draw."""
    where = {axis: [0] for axis in AXES}
    for column, (axis, _) in enumerate(SETTINGS):
        if axis:
            where[axis].append(column)
    where["all of them"] = list(range(len(SETTINGS)))
    found = [torch.tensor(draw["gains"]) for draw in draws]
    return {
        axis: torch.tensor([with_hindsight(one, columns) for one in found])
        for axis, columns in where.items()
    }


def by_horizon(draws: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Those that were not told the horizon, and those that were."""
    return {
        "horizon not told": [draw for draw in draws if not draw["told"]],
        "horizon told": [draw for draw in draws if draw["told"]],
    }


def show(content: Mapping[str, Any]) -> None:
    """Print mean, its interval, and median for each axis."""
    for title, draws in by_horizon(content["draws"]).items():
        print(f"{title}, {len(draws)} draws: log(loss / loss as it is), best setting by hindsight")
        for axis, values in table(draws).items():
            facts = summary(values)
            low, high = facts["interval_95"]
            print(
                f"  {axis:18}{facts['mean']:+.3f} ({low:+.3f} to {high:+.3f})"
                f"  median {facts['median']:+.3f}"
            )


def draw(content: Mapping[str, Any], path: Path) -> None:
    """A dot a draw for each axis; the bar is the mean, the line the median."""
    with panels(path, 2, (9.0, 3.6)) as both:
        groups = by_horizon(content["draws"]).items()
        for axes, (title, draws) in zip(both, groups, strict=True):
            axes.axvline(0, color="0.6", linewidth=0.8)
            for place, values in enumerate(table(draws).values()):
                draw_axis(axes, place, values)
            axes.set_yticks(range(len(AXES) + 1), [*AXES, "all of them"])
            axes.invert_yaxis()
            axes.set_title(f"{title}, {len(draws)} problems")
            axes.set_xlabel("log(final loss / as it is), best setting by another run")


def draw_axis(axes: Axes, place: int, values: Tensor) -> None:
    """One row of the picture."""
    jitter = torch.linspace(-0.25, 0.25, len(values))
    axes.plot(values, place + jitter, "o", color=colour("adam"), markersize=3, alpha=0.6)
    mean, median = float(values.mean()), float(values.median())
    axes.barh(place, mean, height=0.7, color=colour("learned"), alpha=0.35)
    axes.plot([median] * 2, [place - 0.35, place + 0.35], color=colour("learned"))


def main() -> None:
    report.script(__doc__ or "", "default_headroom", measure, draw, show, resumes=True)


if __name__ == "__main__":
    main()
