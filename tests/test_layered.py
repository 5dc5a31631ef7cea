"""The hand-written teacher `layered`, against torch's Adam and its own formula."""

from __future__ import annotations

import math

import pytest
import torch

from learned_optim import LearnedOptimizer
from learned_optim.rules import Layered
from learned_optim.weights import LoadedRule

NEUTRAL = {
    "log_step": math.log(0.01),
    "logit_beta1": math.log(9.0),
    "logit_beta2": math.log(99.0),
}
SHAPES = ((6, 4), (6,), (3, 6), (3,))


def optimizer(params, **constants: float) -> LearnedOptimizer:
    drawn = Layered().init_weights(torch.Generator())
    weights = {key: torch.tensor(constants.get(key, 0.0)) for key in drawn}
    return LearnedOptimizer(params, rule=LoadedRule(Layered(), weights, "layered", ""))


def first_steps(gradient: float = 1e-3, **constants: float) -> list[float]:
    """The length of the first step of each of `SHAPES`."""
    params = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]
    for p in params:
        p.grad = torch.full_like(p, gradient)
    optimizer(params, **constants).step()
    return [-float(p.detach().flatten()[0]) for p in params]


def test_with_constants_that_say_nothing_it_is_adam():
    ours = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    pair = (
        optimizer(ours, **NEUTRAL),
        torch.optim.Adam(theirs, lr=0.01, betas=(0.9, 0.99), eps=1e-12),
    )
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=rng, dtype=p.dtype)
            q.grad = p.grad.clone()
        for one in pair:
            one.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-8)


def test_each_kind_of_tensor_has_its_rate():
    plain = first_steps(log_step=-3.0)
    assert plain == pytest.approx([math.exp(-3)] * 4)
    counts = [24, 6, 18, 3]
    by_count = first_steps(log_step=-3.0, matrix_count=0.5, vector_count=-1.0, vector=0.2)
    expected = [
        math.exp(-3 + (0.5 if index % 2 == 0 else -1.0) * math.log(count) / 5 + 0.2 * (index % 2))
        for index, count in enumerate(counts)
    ]
    assert by_count == pytest.approx(expected)


def test_at_the_reference_size_the_power_says_nothing_and_ten_times_it_is_a_power_of_ten():
    assert first_steps(log_step=-3.0, power=0.5) == pytest.approx([math.exp(-3)] * 4)
    larger = first_steps(0.1, log_step=-3.0, power=0.5)
    assert larger == pytest.approx([10 * math.exp(-3)] * 4)
