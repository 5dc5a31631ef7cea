"""The kernel that orthogonalises the steps of small matrices: `kernels.straighten_`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from learned_optim import kernels
from learned_optim.matrices import QUINTICS
from learned_optim.rules import Default
from learned_optim.rules.default import SIGNALS
from learned_optim.rules.deferral import defer

SHAPES = [(2, 3), (10, 64), (64, 10), (16, 16), (5, 301), (64, 256), (33, 17)]
NAMES = ("length", "blend", "gain", "share", "due")

pytestmark = pytest.mark.usefixtures("built_kernels")


def signals_of(count: int) -> Tensor:
    """As `Default.control` gives them, `(M, T)`."""
    generator = torch.Generator().manual_seed(0)
    signals = torch.rand(len(SIGNALS), count, generator=generator)
    signals[SIGNALS.index("length")] = 10 ** (-4 * torch.rand(count, generator=generator))
    return signals


def terms_of(signals: Tensor) -> Tensor:
    return signals[[SIGNALS.index(name) for name in NAMES]]


def steps_of(signals: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = signals[SIGNALS.index("length")]
    return [
        length * torch.randn(shape, generator=generator)
        for shape, length in zip(SHAPES, lengths, strict=True)
    ]


def moved(step: Tensor, param: Tensor, owed: Tensor, signals: Tensor) -> tuple[Tensor, Tensor]:
    """By the reference in float64: the parameter at lr 0.5, and what is owed."""
    whole = Default().finish(step.double(), signals.double())
    terms = signals[-2:, None].double()
    taken, left = defer(whole.flatten(), owed.double().flatten(), terms)
    return 0.99 * param.double() + 0.5 * taken.view(param.shape), left.view(param.shape)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float32, 1.0),
        (torch.float32, 1e-20),
        (torch.float32, 1e20),
        (torch.bfloat16, 1.0),
        (torch.float16, 1.0),
    ],
)
def test_it_finishes_as_the_rule_does(level: str, dtype: torch.dtype, scale: float):
    signals = signals_of(len(SHAPES))
    signals[SIGNALS.index("length")] *= scale
    steps = steps_of(signals)
    sizes = [step.abs().max() for step in steps]
    params = [step.mul(-2).to(dtype) for step in steps]
    owed = [0.5 * step for step in steps]
    given = zip(steps, params, owed, signals.unbind(1), strict=True)
    expected = [moved(*case) for case in given]
    kernels.straighten_(
        [step.flatten() for step in steps], params, owed, SHAPES, terms_of(signals), QUINTICS,
        lr=0.5, keep=0.99,
    )  # fmt: skip
    for param, kept, size, (aim, left) in zip(params, owed, sizes, expected, strict=True):
        # Iterations multiply a rounding of float32 by up to a thousand.
        assert (kept - left).abs().max() < 1e-4 * size
        exact = torch.finfo(dtype).eps * aim.abs() + torch.finfo(dtype).smallest_normal
        assert ((param.double() - aim).abs() <= exact + 1e-4 * size).all()


def test_a_step_of_zero_moves_nothing(level: str):
    param, owed = torch.ones(3, 4), torch.zeros(3, 4)
    terms = torch.full((5, 1), 0.5)
    kernels.straighten_([torch.zeros(12)], [param], [owed], [(3, 4)], terms, QUINTICS)
    assert torch.equal(param, torch.ones(3, 4))
    assert torch.equal(owed, torch.zeros(3, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_not_taken(level: str, value: float):
    params = [torch.ones(3, 4), torch.ones(4, 3)]
    owed = [torch.zeros(3, 4), torch.zeros(4, 3)]
    steps = [torch.ones(12), torch.ones(12)]
    steps[0][7] = value
    terms = torch.full((5, 2), 0.5)
    kernels.straighten_(steps, params, owed, [(3, 4), (4, 3)], terms, QUINTICS)
    assert torch.equal(params[0], torch.ones(3, 4))
    assert torch.equal(owed[0], torch.zeros(3, 4))
    assert not torch.equal(params[1], torch.ones(4, 3))


def test_threads_change_nothing(level: str):
    found = []
    for threads in (1, 3):
        signals = signals_of(len(SHAPES))
        params = [torch.zeros(shape) for shape in SHAPES]
        owed = [torch.zeros(shape) for shape in SHAPES]
        steps = [step.flatten() for step in steps_of(signals)]
        terms = terms_of(signals)
        kernels.straighten_(steps, params, owed, SHAPES, terms, QUINTICS, threads=threads)
        found.append(params + owed)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": [torch.zeros(15).double()]}, "steps must be one of"),
        ({"owed": [torch.zeros(3, 5).mT]}, "all of owed must be contiguous"),
        ({"params": [torch.zeros(5, 3).double()]}, "params must be one of"),
        ({"terms": torch.zeros(2, 1)}, "terms must have shape (5, 1) but has (2, 1)"),
        ({"terms": torch.zeros(5, 1).double()}, "terms must be float32"),
        ({"quintics": [(1.0, 2.0)]}, "quintics must be of three numbers each but are [(1.0, 2.0)]"),
        ({"shapes": [(0, 3)]}, "shapes must be of positive sides but are [(0, 3)]"),
    ],
)
def test_what_it_cannot_read_is_refused(change: dict[str, Any], message: str):
    given: dict[str, Any] = {
        "steps": [torch.zeros(15)],
        "params": [torch.zeros(5, 3)],
        "owed": [torch.zeros(5, 3)],
        "shapes": [(5, 3)],
        "terms": torch.zeros(5, 1),
        "quintics": QUINTICS,
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        kernels.straighten_(**given | change)
