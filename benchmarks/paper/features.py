"""The feature extractor of neural art: a small classifier of CIFAR-10, trained from nothing.

    python -m benchmarks.paper.features

Three convolutions (24 of 5x5, then 32 and 48 of 3x3, averages of 2x2 between them) and one dense
layer, Adam with a linearly falling rate; some minutes on one core. Writes the convolutions to
`learned_optim/tasks/cifar_features.safetensors`, which is committed, and the accuracy to
`benchmarks/results/cifar_features.json`. Pretrained classifiers, which the paper uses, are much
larger and see larger images: what is painted here is coarser.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import safetensors.torch
import torch
from torch.nn import functional
from tqdm import tqdm

from benchmarks.results import RESULTS, provenance, write_json
from learned_optim.tasks import Params, nets
from learned_optim.tasks.datasets import load, scaled
from learned_optim.tasks.neural_art import FEATURES_FILE, activations

WIDTHS = ((3, 24, 5), (24, 32, 3), (32, 48, 3))
STEPS, BATCH, RATE = 1000, 64, 2e-3


def start(generator: torch.Generator, side: int) -> Params:
    """He initialisation; `side` is the images'."""
    params: Params = {}
    for i, (inputs, outputs, size) in enumerate(WIDTHS):
        params |= nets.conv_params(generator, f"conv{i}", inputs, outputs, size=size)
    # The last maps are averaged two by two once more.
    return params | nets.dense_params(generator, "head", WIDTHS[-1][1] * (side // 8) ** 2, 10)


def logits(params: Params, x: torch.Tensor) -> torch.Tensor:
    """`(B, 3, H, W)` in [-1, 1] -> `(B, 10)`."""
    last = functional.avg_pool2d(activations(params, x)[-1], 2)
    return nets.dense(params, "head", last.flatten(1))


def train(dataset: str, steps: int, seed: int = 0) -> Params:
    """Train on a data set of `learned_optim.tasks.datasets` with three channels."""
    images, labels = load(dataset, "train")
    generator = torch.Generator().manual_seed(seed)
    params = {
        key: value.requires_grad_() for key, value in start(generator, images.shape[-1]).items()
    }
    optimizer = torch.optim.Adam(params.values(), lr=RATE)
    for step in tqdm(range(steps), desc="features", mininterval=5):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        index = nets.integers(generator, len(labels), BATCH)
        x = nets.centred(scaled(images[index]))
        # Reflections double the data.
        x = torch.where(torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5, x, x.flip(-1))
        optimizer.zero_grad()
        functional.cross_entropy(logits(params, x), labels[index]).backward()
        optimizer.step()
    return {key: value.detach() for key, value in params.items()}


@torch.no_grad()
def accuracy(params: Params, dataset: str, chunk: int = 1000) -> float:
    """Fraction of the test split that is classified rightly."""
    images, labels = load(dataset, "test")
    right = sum(
        int((logits(params, nets.centred(scaled(x))).argmax(1) == y).sum())
        for x, y in zip(images.split(chunk), labels.split(chunk), strict=True)
    )
    return right / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=FEATURES_FILE, metavar="FILE")
    arguments = parser.parse_args()
    params = train("cifar10", STEPS)
    kept = {key: value for key, value in params.items() if key.startswith("conv")}
    safetensors.torch.save_file(kept, arguments.weights)
    found = {"test_accuracy": accuracy(params, "cifar10"), "steps": STEPS, "seed": 0}
    write_json(RESULTS / "cifar_features.json", {"features": found, **provenance()})
    print(f"Test accuracy {found['test_accuracy']:.1%}; written: {arguments.weights}")


if __name__ == "__main__":
    main()
