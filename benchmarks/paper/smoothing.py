"""What smoothing the features does to the gradient of an episode of the paper's MNIST rule.

    python -m benchmarks.paper.smoothing             measures, three minutes
    python -m benchmarks.paper.smoothing --redraw    the table and the picture from the JSON

At the weights of `pretrained/l2l-mnist-odd`, which owe nothing to it (at those of a finished rule
there is nothing left to agree on): the gradient of the sum of the losses by the
meta-parameters (`learned_optim.meta_training.adjoint`), one for each of some episodes, through the
first 20, 50 or 100 steps, for several widths of smoothing. Of what size are they, and are those of
different episodes of one mind (mean cosine)? What descent along them comes to is the validation of
`pretrained/l2l-mnist/metrics.json`. Writes results/paper_smoothing.json and .png.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper import report
from benchmarks.plotting import panels
from benchmarks.results import provenance, write_json
from learned_optim.meta_training.adjoint import window_gradient
from learned_optim.meta_training.seeding import derive_seed
from learned_optim.meta_training.unroll import Runs, advance, begin
from learned_optim.tasks import MnistMLP
from learned_optim.weights import LoadedRule, load_bundled

WIDTHS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
LENGTHS = (20, 50, 100)
EPISODES = 8


def gradient(rule: LoadedRule, seed: int, width: float, length: int) -> Tensor:
    """Of one episode, flat."""
    weights = dict(rule.weights)
    runs = Runs(MnistMLP().sample(torch.Generator()), [seed])
    layout, carry = begin(rule.rule, runs)
    carries = [carry]
    for _ in range(length):
        carries.append(advance(rule.rule, weights, runs, layout, carries[-1]))
    every = torch.ones(length, 1)
    found = window_gradient(rule.rule, weights, runs, layout, carries, every, smoothing=width)
    return torch.cat([value.flatten() for value in found.values()])


@torch.no_grad()
def measure(path: Path) -> None:
    """All widths and lengths."""
    rule = load_bundled("l2l-mnist-odd")
    seeds = [derive_seed("smoothing", "episode", run) for run in range(EPISODES)]
    cells = []
    for length in LENGTHS:
        for width in WIDTHS:
            found = torch.stack([gradient(rule, seed, width, length) for seed in seeds])
            norms = found.norm(dim=1)
            unit = found / norms[:, None]
            cosines = (unit @ unit.T).sum() - EPISODES
            cells.append(
                {
                    "length": length,
                    "width": width,
                    "norms": norms.tolist(),
                    "cosine": float(cosines) / (EPISODES * (EPISODES - 1)),
                }
            )
    write_json(path, {"weights_sha256": rule.sha256, "cells": cells, **provenance()})


def show(content: Mapping[str, Any]) -> None:
    """Print a line for each cell."""
    print(f"{'steps':>6}{'width':>7}{'median norm':>13}{'largest':>11}{'cosine':>8}")
    for cell in content["cells"]:
        sizes = f"{statistics.median_low(cell['norms']):13.3g}{max(cell['norms']):11.3g}"
        print(f"{cell['length']:>6}{cell['width']:>7g}{sizes}{cell['cosine']:8.2f}")


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Norm and cosine against the width, a line for each length."""
    cells = [{**cell, "median": statistics.median_low(cell["norms"])} for cell in content["cells"]]
    titles = {
        "median": "median norm",
        "cosine": "mean cosine of two episodes",
    }
    places = {width: width or WIDTHS[1] / 3 for width in WIDTHS}  # a logarithmic axis has no zero
    with panels(path, len(titles), (8.0, 3.4)) as row:
        for axes, (key, title) in zip(row, titles.items(), strict=True):
            for length in LENGTHS:
                mine = [cell for cell in cells if cell["length"] == length]
                x = [places[cell["width"]] for cell in mine]
                axes.plot(
                    x, [cell[key] for cell in mine], "o-", markersize=4, label=f"{length} steps"
                )
            axes.set_xscale("log")
            axes.set_xticks(list(places.values()), [f"{width:g}" for width in places])
            axes.xaxis.minorticks_off()
            axes.set_title(title)
            axes.set_xlabel("width of the smoothing")
            if key == "median":
                axes.set_yscale("log")
            else:
                axes.axhline(0.0, color="0.6", linewidth=0.8)
        row[0].legend(fontsize=8)


def main() -> None:
    report.script(__doc__ or "", "paper_smoothing", measure, draw, show)


if __name__ == "__main__":
    main()
