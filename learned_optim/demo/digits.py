"""The demo's task: scikit-learn's digits, a small network, and one plain training run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from learned_optim.tasks import datasets

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}

HIDDEN = 64


class Digits(NamedTuple):
    """1797 images of 8 x 8 pixels in [0, 1], flattened, in ten classes, cut into two parts.

    Attributes:
        train_x: `(1437, 64)`.
        train_y: `(1437,)`, int64.
        test_x: `(360, 64)`.
        test_y: `(360,)`, int64.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@dataclass(frozen=True)
class Training:
    """How long a run is and what it records.

    Args:
        steps: updates.
        batch_size: images in each minibatch.
        every: steps between two evaluations on the whole training and test set.
    """

    steps: int
    batch_size: int = 64
    every: int = 10

    @property
    def evaluated(self) -> list[int]:
        """The numbers of updates after which there is an evaluation; the last is `steps`."""
        return [*range(0, self.steps, self.every), self.steps]


@dataclass
class Run:
    """What one run recorded, at each of `Training.evaluated`.

    Attributes:
        train_loss: mean cross entropy over the whole training set.
        test_accuracy: fraction of the test set that is classified right.
        seconds: time spent training, evaluations left out.
    """

    train_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def final_loss(self) -> float:
        """The last training loss; infinite where the run diverged to something else."""
        loss = self.train_loss[-1]
        return loss if math.isfinite(loss) else math.inf


def load() -> Digits:
    """The digits that come inside scikit-learn.

    Raises:
        DataUnavailable: without scikit-learn, saying how to get it.
    """
    parts = (datasets.load("digits", split) for split in ("train", "test"))
    flat = [(datasets.scaled(images).flatten(1), labels) for images, labels in parts]
    return Digits(*flat[0], *flat[1])


def network(activation: str, seed: int) -> nn.Sequential:
    """64-64-10 with one hidden layer, PyTorch's default initial weights drawn with `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(64, HIDDEN), ACTIVATIONS[activation](), nn.Linear(HIDDEN, 10)
        )


def minibatches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Indices of one minibatch after another, every epoch in a new order, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count // size * size].view(-1, size)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: networks this small gain nothing from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def evaluate(model: nn.Module, digits: Digits, run: Run) -> None:
    """Append the training loss and the test accuracy of `model` to `run`."""
    loss = nn.functional.cross_entropy(model(digits.train_x), digits.train_y)
    right = (model(digits.test_x).argmax(-1) == digits.test_y).float().mean()
    run.train_loss.append(loss.item())
    run.test_accuracy.append(right.item())


def train(
    make_optimizer: MakeOptimizer,
    digits: Digits,
    activation: str,
    training: Training,
    seed: int,
    tick: Callable[[int], object] = lambda steps: None,
) -> Run:
    """Train one network from its start.

    Args:
        make_optimizer: called with the parameters.
        digits: the data.
        activation: a key of `ACTIVATIONS`.
        training: the length and the evaluations.
        seed: draws the initial weights and the order of the minibatches.
        tick: called with the number of steps done since its last call, for a progress bar.

    Returns:
        What was recorded.
    """
    model = network(activation, seed)
    optimizer = make_optimizer(model.parameters())
    batches = minibatches(len(digits.train_y), training.batch_size, seed)
    run = Run()
    evaluate(model, digits, run)
    done = 0
    for until in training.evaluated[1:]:
        start = time.perf_counter()
        for _ in range(until - done):
            chosen = next(batches)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(
                model(digits.train_x[chosen]), digits.train_y[chosen]
            )
            loss.backward()
            optimizer.step()
        run.seconds += time.perf_counter() - start
        evaluate(model, digits, run)
        tick(until - done)
        done = until
    return run
