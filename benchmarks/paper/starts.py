"""What the paper's figures say of its start: MNIST networks from narrow and from wide ones.

    python -m benchmarks.paper.starts             what the JSON lacks, ten minutes in all
    python -m benchmarks.paper.starts --redraw    the table and the picture from the JSON

The paper draws the optimizee's parameters from a Gaussian whose width it does not state; the
released code has 0.01, and so has every other experiment here. The width can be read off the
paper's own baselines (section 3.2), which owe nothing to a learned rule: four of them from four
widths, on the three sigmoid networks that the paper has figures of, each at the best of its rates,
four a decade, chosen with hindsight on these very runs. Beside them the rule of the narrow start
with one layer of 20, without retraining. Writes results/paper_starts.json and .png after every
network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper import report
from benchmarks.paper.hindsight import complete, finals
from benchmarks.plotting import colour, log_axes, panels
from benchmarks.runs import Problem
from learned_optim.tasks import MnistMLP
from learned_optim.weights import LoadedRule, load_bundled

STDS = (0.01, 0.03, 0.05, 0.1)
RUNS, STEPS, BLOCK = 20, 100, 4
TAIL = 5  # steps that the final loss is the mean of, as all see the same few minibatches
RATES = {
    "adam": tuple(10 ** (-2.25 + k / 4) for k in range(6)),
    "rmsprop": tuple(10 ** (-2.5 + k / 4) for k in range(6)),
    "nag": tuple(10 ** (-1 + k / 4) for k in range(7)),
    "sgd": tuple(10 ** (-0.5 + k / 4) for k in range(7)),
}
# Loss at step 100 by the paper's figures, read off to about 5 %; by the layers and their units.
PAPER = {
    (1, 20): {"adam": 0.359, "rmsprop": 0.359, "nag": 0.326, "sgd": 0.466, "learned": 0.255},
    (1, 40): {"adam": 0.312, "rmsprop": 0.323, "nag": 0.301, "sgd": 0.448, "learned": 0.191},
    (2, 20): {"adam": 0.705, "rmsprop": 0.731, "nag": 0.758, "sgd": 1.80, "learned": 0.325},
}


def examine(std: float, layers: int, units: int, rule: LoadedRule) -> dict[str, Any]:
    """One network: final losses of the rule and of each baseline at its best rate."""
    task = MnistMLP(layers=layers, hidden=units, init_std=std).sample(torch.Generator())
    problem = Problem(task, RUNS, STEPS, "starts", BLOCK)
    found = finals(problem, rule, RATES, f"{layers} x {units}, {std:g}", TAIL)
    return {"std": std, "layers": layers, "units": units, **found}


def measure(path: Path) -> None:
    """Run the networks that `path` lacks for today's weights."""
    rule = load_bundled("l2l-mnist")
    networks = {
        f"{layers} x {units}, {std:g}": partial(examine, std, layers, units, rule)
        for std in STDS
        for layers, units in PAPER
    }
    complete(path, "starts", rule, networks)


def shape_of(network: Mapping[str, Any]) -> tuple[int, int]:
    """Its layers and their units, as in `PAPER`."""
    return network["layers"], network["units"]


def distance(network: Mapping[str, Any]) -> float:
    """From the paper's baselines, the learned rule left out: mean size of the log of the ratio."""
    entries, paper = network["entries"], PAPER[shape_of(network)]
    return sum(abs(math.log(entries[key]["mean"] / paper[key])) for key in RATES) / len(RATES)


def show(content: Mapping[str, Any]) -> None:
    """Print a line for each network."""
    print(f"{'network, std':>13}" + "".join(f"{key:>10}" for key in (*RATES, "learned")) + "   off")
    for network in content["starts"].values():
        cells = [report.number(network["entries"][key]["mean"]) for key in (*RATES, "learned")]
        row = "".join(f"{cell:>10}" for cell in cells)
        layers, units = shape_of(network)
        print(f"{layers} x {units}, {network['std']:<6g}{row}{distance(network):6.2f}")


def draw(content: Mapping[str, Any], path: Path) -> None:
    """Final loss against the start's width, a panel for each network; the paper's is dashed."""
    with panels(path, len(PAPER), (11.0, 3.4)) as row:
        for axes, shape in zip(row, PAPER, strict=True):
            networks = [each for each in content["starts"].values() if shape_of(each) == shape]
            stds = [each["std"] for each in networks]
            for key in (*RATES, "learned"):
                means = [each["entries"][key]["mean"] for each in networks]
                name = "L2L, learned" if key == "learned" else report.label(key)
                axes.plot(stds, means, "o-", color=colour(key), markersize=4, label=name)
                axes.axhline(PAPER[shape][key], color=colour(key), linewidth=0.9, linestyle="--")
            axes.set_title(f"{shape[0]} x {shape[1]} (dashed: the paper)")
            axes.set_xlabel("standard deviation of the start")
            log_axes(axes, STDS)
        row[0].set_ylabel(f"loss, steps {STEPS - TAIL + 1} to {STEPS}")
        row[-1].legend(fontsize=8, loc="lower left")


def main() -> None:
    report.script(__doc__ or "", "paper_starts", measure, draw, show, resumes=True)


if __name__ == "__main__":
    main()
