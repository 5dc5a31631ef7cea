"""What are the parts of `default` worth: bases, clipping, decays, what is taken later and repaid?

    python -m benchmarks.default_bases             every draw that the JSON lacks
    python -m benchmarks.default_bases --again     all of them anew
    python -m benchmarks.default_bases --redraw    the table and the picture from the JSON

Each draw of the families of `pretrained/default/recipe.toml` is trained by `default` as it ships
and by `VARIANTS` of it, two runs each on the same minibatches: without bases (small matrices
orthogonalised like large ones), with bases for other matrices, with neither bases nor
orthogonalisation, with Muon's iterations, with other decays, with gradients that are not clipped,
with nothing deferred, and with more or less of it, and with a pace that growth does not lower. So
are draws of regressions of few inputs, whose first layers are what tall matrices have bases for.
The figure for each draw is the mean log(final loss / that of `default` as it ships), clipped to a
factor of 10, so that above 0 a variant is worse. A problem counts as noisy where `default` as it
ships leaves a tenth of the loss at the start or more. Every other round of the families is told the
horizon. The choices were made on other draws of these families; what they did on problems that
nothing was chosen by is in `benchmarks.generalization`.
Writes results/default_bases.json and .png. Draws in the JSON are kept while the constants are the
same; after a change of the rule's code, which nothing notices, begin `--again`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.default_ablations import RECIPE
from benchmarks.default_headroom import by_horizon, draw_axis, gains
from benchmarks.general.grids import MUON_QUINTICS
from benchmarks.paper import report
from benchmarks.plotting import panels
from benchmarks.results import provenance, write_json
from benchmarks.statistics import summary
from learned_optim import bases, matrices
from learned_optim.matrices import QUINTICS, Quintic
from learned_optim.meta_training.baseline import loss_curve, tail_mean
from learned_optim.meta_training.recipe import TaskEntry
from learned_optim.meta_training.recipe_file import read_recipe
from learned_optim.meta_training.seeding import derive_seed, generator
from learned_optim.meta_training.truncation import LogUniform
from learned_optim.meta_training.unroll import Runs
from learned_optim.rules import Default
from learned_optim.rules.hand import HAND_SCALE, hand_weights
from learned_optim.tasks import FiniteRegression
from learned_optim.weights import digest

ROUNDS, RUNS, TAIL = 4, 2, 0.1
STEPS = LogUniform(250, 1000)
NONE = -40.0  # logit of a share that rounds to nothing beside 1
NOISY = 0.1  # of the loss at the start
SHIPPED = "as it ships"
FEW_INPUTS = TaskEntry(FiniteRegression(inputs=(4, 6, 8, 10)))
FEW = 6  # draws of it in each round


def even(rows: int, columns: int) -> bool:
    """`bases.pays` without the tall ones."""
    short, long = sorted((rows, columns))
    return short > 1 and long <= min(bases.MOST_UNEVEN * short, bases.LONGEST)


def small(rows: int, columns: int) -> bool:
    """`bases.pays` with all tall and wide ones."""
    short, long = sorted((rows, columns))
    return short > 1 and long <= bases.LONGEST


@dataclass(frozen=True)
class Variant:
    """A rule that differs from `default` in one thing.

    Attributes:
        rule: without the networks, which say nothing yet.
        constants: those of the hand rule that are replaced, before they are scaled.
        pays: in the place of `bases.pays`; a rule of another class would be another rounding too,
            as kernels know `Default` alone.
        quintics: of the orthogonalisation.
    """

    rule: Default
    constants: Mapping[str, float] = field(default_factory=dict)
    pays: Callable[[int, int], bool] = bases.pays
    quintics: Sequence[Quintic] = QUINTICS


def _of(
    *,
    decays: tuple[float, float] | None = None,
    clip: float | None = None,
    share: float | None = None,
    due: float | None = None,
    **changes: bool,
) -> Variant:
    constants = {}
    if decays is not None:
        for key, decay in zip(("logit_beta1", "logit_beta2"), decays, strict=True):
            constants[key] = math.log(decay / (1 - decay))
    if clip is not None:
        constants["log_clip"] = math.log(clip)
    if share is not None:
        constants["logit_share"] = math.log(share / (1 - share)) if share else NONE
    if due is not None:
        constants["log_due"] = math.log(due)
    return Variant(Default(hidden=0, controller=0, **changes), constants)


VARIANTS: dict[str, Variant] = {
    SHIPPED: _of(),
    "no bases": _of(basis=False),
    "for even matrices only": replace(_of(), pays=even),
    "for every small matrix": replace(_of(), pays=small),
    "no matrix stage": _of(matrix=False),
    "no clipping": _of(clip=1e12),
    "decays 0.77 and 0.97": _of(decays=(0.77, 0.97)),
    "the same, no clipping": _of(decays=(0.77, 0.97), clip=1e12),
    "no deferral": _of(share=0.0),
    "0.3 of a step later": _of(share=0.3),
    "0.7 of a step later": _of(share=0.7),
    "due: 8 / steps": _of(due=8.0),
    "growth not repaid": replace(_of(), constants={"repay": 0.0}),
    # As Muon has it; its singular values end lower, so steps were as much longer.
    "one quintic five times": replace(
        _of(), constants={"log_gain": math.log(1.1)}, quintics=MUON_QUINTICS
    ),
}


def train(variant: Variant, runs: Runs, steps: int, told: int | None) -> Tensor:
    """Its losses, `(steps + 1, R)`."""
    changed = {f"hand.{k}": torch.tensor([v]) / HAND_SCALE for k, v in variant.constants.items()}
    straighten = functools.partial(matrices.straighten, quintics=variant.quintics)
    with (
        patch.object(bases, "pays", variant.pays),
        patch("learned_optim.rules.default.straighten", straighten),
    ):
        return loss_curve(variant.rule, hand_weights() | changed, runs, steps, told)


def examine(entry: TaskEntry, index: int, steps: LogUniform, *, told: bool) -> dict[str, Any]:
    """One draw under every variant, ready for JSON."""
    task = entry.family.sample(generator("bases", index, "task"))
    length = steps.sample(generator("bases", index, "steps"))
    seeds = [derive_seed("bases", index, "run", run) for run in range(RUNS)]
    horizon = length if told else None
    curves = [train(variant, Runs(task, seeds), length, horizon) for variant in VARIANTS.values()]
    curve = torch.stack(curves, dim=-1)
    left = tail_mean(curve, TAIL)[:, 0] / curve[0, :, 0]
    return {
        "family": entry.label,
        "steps": length,
        "told": told,
        "left": float(f"{float(left.log().mean().exp()):.4g}"),
        "gains": [round(value, 4) for value in gains(curve).mean(0).tolist()],
    }


def measure(path: Path, rounds: int = ROUNDS, steps: LogUniform = STEPS) -> None:
    """Run the draws that `path` lacks, and write after each; anew if the constants have changed."""
    entries = [*read_recipe(RECIPE).tasks, *[FEW_INPUTS] * FEW]
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    made_with = {"weights_sha256": digest(hand_weights()), "variants": [*VARIANTS]}
    draws: list[dict[str, Any]] = saved["draws"] if made_with.items() <= saved.items() else []
    for index in tqdm(range(len(draws), rounds * len(entries)), desc="draws"):
        turn, place = divmod(index, len(entries))
        draws.append(examine(entries[place], index, steps, told=turn % 2 == 1))
        write_json(path, {**made_with, "draws": draws, **provenance()})


def kinds(draws: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Those of the recipe, and apart what can be fitted and what is noise; those of few inputs."""
    few = [draw for draw in draws if draw["family"] == FEW_INPUTS.label]
    others = [draw for draw in draws if draw["family"] != FEW_INPUTS.label]
    return {
        "all": others,
        "can be fitted": [draw for draw in others if draw["left"] < NOISY],
        "noisy": [draw for draw in others if draw["left"] >= NOISY],
        "few inputs": few,
    }


def column(draws: list[dict[str, Any]], variant: str) -> Tensor:
    """The figures of one variant."""
    place = [*VARIANTS].index(variant)
    return torch.tensor([draw["gains"][place] for draw in draws])


def show(content: Mapping[str, Any]) -> None:
    """Print mean, its interval, and median of each variant."""
    for title, told in by_horizon(content["draws"]).items():
        for kind, draws in kinds(told).items():
            if not draws:
                continue
            print(f"{title}, {kind}, {len(draws)} draws: log(loss / loss as it ships)")
            for variant in [*VARIANTS][1:]:
                facts = summary(column(draws, variant))
                low, high = facts["interval_95"]
                print(
                    f"  {variant:24}{facts['mean']:+.3f} ({low:+.3f} to {high:+.3f})"
                    f"  median {facts['median']:+.3f}"
                )


def draw(content: Mapping[str, Any], path: Path) -> None:
    """A dot a draw for each variant; the bar is the mean, the line the median."""
    names = [*VARIANTS][1:]
    groups = {
        f"{kind}, {title}": kinds(told)[key]
        for key, kind in (("all", "training families"), ("few inputs", "few inputs"))
        for title, told in by_horizon(content["draws"]).items()
    }
    with panels(path, len(groups), (13.0, 3.6)) as all_axes:
        for axes, (title, draws) in zip(all_axes, groups.items(), strict=True):
            axes.axvline(0, color="0.6", linewidth=0.8)
            for place, name in enumerate(names if draws else ()):
                draw_axis(axes, place, column(draws, name))
            axes.set_yticks(range(len(names)), names if axes is all_axes[0] else [""] * len(names))
            axes.invert_yaxis()
            axes.set_title(f"{title}:\n{len(draws)} problems", fontsize="medium")
            axes.set_xlabel("log(loss / as it ships)")


def main() -> None:
    report.script(__doc__ or "", "default_bases", measure, draw, show, resumes=True)


if __name__ == "__main__":
    main()
