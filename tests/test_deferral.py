"""Part of each step is taken later: `rules.deferral`."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from learned_optim import LearnedOptimizer
from learned_optim.rules import RULES, Clock, Default
from learned_optim.rules.deferral import defer
from learned_optim.rules.hand import HAND, deferred, hand_weights
from learned_optim.weights import in_memory

SHARE, PACE = 0.6, 4.0


def due(step: int) -> float:
    """Of what is owed, at a step."""
    return PACE / (step + PACE - 1)


def terms(step: int) -> Tensor:
    return torch.tensor([[SHARE], [due(step)]], dtype=torch.float64)


def test_the_parameters_are_a_mix_of_the_whole_steps_and_their_mean():
    steps = torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    param, owed = torch.zeros(7).double(), torch.zeros(7).double()
    whole, mean = param, param
    for k, step in enumerate(steps, start=1):
        taken, owed = defer(step, owed, terms(k))
        param = param + taken
        whole = whole + step
        mean = mean + due(k) * (whole - mean)
        torch.testing.assert_close(param, (1 - SHARE) * whole + SHARE * mean)
        torch.testing.assert_close(owed, whole - mean)
    assert (owed.abs() > 0.1).any()


def test_the_mean_is_of_the_points_by_the_power_of_their_time_that_the_pace_asks_for():
    """With `due` = P / (t + P - 1) a point weighs as t (t + 1) ... (t + P - 2)."""
    steps = torch.randn(40, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    owed = torch.zeros(3).double()
    for k, step in enumerate(steps, start=1):
        _, owed = defer(step, owed, terms(k))
    points = steps.cumsum(0)
    times = torch.arange(1, 41).double()
    weights = times * (times + 1) * (times + 2)
    mean = (weights[:, None] * points).sum(0) / weights.sum()
    torch.testing.assert_close(owed, points[-1] - mean)


@pytest.mark.parametrize("pattern", ["alike", "turning", "random", "first large"])
def test_what_is_taken_is_no_longer_than_the_longest_step(pattern: str):
    count = torch.arange(400).double()
    steps = {
        "alike": torch.ones(400).double(),
        "turning": torch.cos(math.pi * count),
        "random": torch.rand(400, generator=torch.Generator().manual_seed(2)).double() * 2 - 1,
        "first large": 1 / (1 + count),
    }[pattern]
    owed = torch.zeros(1).double()
    for k, step in enumerate(steps, start=1):
        taken, owed = defer(step[None], owed, terms(k))
        assert taken.abs() <= 1 + 1e-12


def test_without_a_share_steps_are_taken_as_they_are():
    step, owed = torch.randn(5), torch.randn(5)
    taken, _ = defer(step, owed, torch.tensor([[0.0], [0.3]]))
    assert torch.equal(taken, step)


def test_the_first_step_is_taken_whole_and_less_falls_due_as_time_goes_on():
    share, parts = deferred(Clock(torch.arange(1.0, 1001.0), None), hand_weights())
    assert parts[0] == 1
    assert (parts.diff() < 0).all()
    assert parts[999] == pytest.approx(due(1000))
    assert share == pytest.approx(SHARE)
    hasty = hand_weights() | {"hand.log_due": torch.tensor([-5.0])}
    _, parts = deferred(Clock(torch.tensor([1.0, 10.0]), None), hasty)
    torch.testing.assert_close(parts, torch.tensor([1.0, 0.1]))  # never slower than the plain mean


@pytest.mark.parametrize(
    ("told", "part"), [(1, 0), (100, 0), (141.42135, 0.5), (200, 1), (10_000, 1)]
)
def test_a_run_that_is_told_few_steps_defers_nothing(told: float, part: float):
    clock = Clock(torch.tensor([7.0]), torch.tensor([told]))
    share, _ = deferred(clock, hand_weights())
    assert share == pytest.approx(part * SHARE, abs=1e-6)
    assert Default().share(hand_weights(), int(told)) == pytest.approx(float(share), abs=4e-3)


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_that_defers_says_where_it_keeps_what_is_owed(name: str):
    rule = RULES[name]()
    if rule.owing is None:
        return
    key, row = rule.owing
    spec = rule.state_spec[key]
    assert spec.per == "coordinate"
    assert row < spec.rows
    assert rule.owing not in rule.turning  # a step is owed in the parameters' own coordinates


def test_whoever_moves_parameters_by_hand_is_not_undone():
    moved, plain = (nn.Parameter(torch.ones(6, 5)) for _ in range(2))
    optimizers = [
        LearnedOptimizer([p], rule=in_memory(Default(), Default().init_weights(g), name="x"))
        for p, g in ((moved, torch.Generator()), (plain, torch.Generator()))
    ]
    grad = torch.ones(6, 5)
    for k in range(20):
        grad = torch.randn(6, 5, generator=torch.Generator().manual_seed(k))
        for param, optimizer in zip((moved, plain), optimizers, strict=True):
            param.grad = grad.clone()
            optimizer.step()
    with torch.no_grad():
        moved.neg_()  # of the same size, so that steps keep their length
        jump = moved - plain
    for param, optimizer in zip((moved, plain), optimizers, strict=True):
        param.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(moved - plain, jump, rtol=0, atol=1e-6)


def test_the_constants_are_those_that_are_tested_here():
    assert HAND["logit_share"] == (pytest.approx(math.log(SHARE / (1 - SHARE))),)
    assert HAND["log_due"] == (pytest.approx(math.log(PACE)),)
