"""What a step of a rule costs on this machine, beside torch's Adam: measured, in a second.

A glance, for `learned-optim info`; `benchmarks/step_time.py` is the measurement.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from learned_optim.backends import choose
from learned_optim.optimizer import LearnedOptimizer
from learned_optim.weights import LoadedRule

_INPUTS, _CLASSES = 784, 10
# Of the network's hidden layer; the first one whose step stays within `_MULTIPLICATIONS`.
_WIDTHS = (128, 16, 1)
_MULTIPLICATIONS = 1e9
_FEWEST = 3  # turns, whatever the time


@dataclass(frozen=True)
class StepCost:
    """The price of one step.

    Attributes:
        nanoseconds: of processor time, a parameter.
        times_adam: the same, divided by that of `torch.optim.Adam(foreach=True)`.
        parameters: of the network that was stepped.
        backend: which one the optimizer chose.
    """

    nanoseconds: float
    times_adam: float
    parameters: int
    backend: str


def step_cost(loaded: LoadedRule, seconds: float = 1.0) -> StepCost:
    """Time steps of a rule and of Adam on a small network, on one thread of the CPU.

    Args:
        loaded: the rule.
        seconds: roughly how long to measure, > 0; a step or two longer.
    """
    weights = sum(value.numel() for value in loaded.weights.values())
    shapes = _shapes(weights)
    parameters = sum(torch.Size(shape).numel() for shape in shapes)
    learned = LearnedOptimizer(_parameters(shapes), rule=loaded)
    adam = torch.optim.Adam(_parameters(shapes), foreach=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        own, reference = _medians(learned.step, adam.step, seconds)
    finally:
        torch.set_num_threads(threads)
    return StepCost(
        nanoseconds=1e9 * own / parameters,
        times_adam=own / reference,
        parameters=parameters,
        backend=choose(loaded.rule, torch.device("cpu"), torch.float32, None).name,
    )


def _shapes(weights: int) -> list[tuple[int, ...]]:
    """A network of one hidden layer, narrower for a rule so large that it would take long."""
    fitting = (width for width in _WIDTHS if weights * width * _INPUTS <= _MULTIPLICATIONS)
    width = next(fitting, _WIDTHS[-1])
    return [(width, _INPUTS), (width,), (_CLASSES, width), (_CLASSES,)]


def _parameters(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """With gradients; from a generator of its own, so that the caller's numbers stay the same."""
    generator = torch.Generator().manual_seed(0)
    made: list[Tensor] = []
    for shape in shapes:
        param = nn.Parameter(torch.randn(shape, generator=generator))
        param.grad = 1e-2 * torch.randn(shape, generator=generator)
        made.append(param)
    return made


def _medians(
    first: Callable[[], object], second: Callable[[], object], seconds: float
) -> tuple[float, float]:
    """Seconds of each, in turn, so that what disturbs the machine meets both; a turn warms up.

    Of the thread's own time, which other programs disturb least.
    """
    found: tuple[list[float], list[float]] = ([], [])
    first()
    second()
    end = time.perf_counter() + seconds
    while len(found[0]) < _FEWEST or time.perf_counter() < end:
        for step, times in zip((first, second), found, strict=True):
            start = time.thread_time()
            step()
            times.append(time.thread_time() - start)
    return statistics.median(found[0]), statistics.median(found[1])
