"""What `learned-optim info` says of a step's price."""

from __future__ import annotations

import time

import pytest
import torch

from learned_optim.cost import step_cost
from learned_optim.rules import L2L, Adam, UpdateRule
from learned_optim.weights import LoadedRule, in_memory


def made(rule: UpdateRule) -> LoadedRule:
    return in_memory(rule, rule.init_weights(torch.Generator().manual_seed(0)), name="a-rule")


def test_a_larger_rule_costs_more_than_a_small_one_and_both_more_than_adam():
    """By an order of magnitude, so that a busy machine does not turn it around."""
    small, large = (step_cost(made(L2L(layers=1, hidden=n)), 0.1) for n in (4, 40))
    assert small.times_adam > 1
    assert 3 * small.nanoseconds < large.nanoseconds
    assert small.parameters == large.parameters == 784 * 128 + 128 + 128 * 10 + 10


def test_the_backend_is_the_one_that_the_optimizer_takes():
    assert step_cost(made(Adam()), 0.01).backend == "eager"


def test_the_largest_rule_that_may_be_loaded_is_timed_on_fewer_parameters():
    start = time.thread_time()
    cost = step_cost(made(L2L(layers=8, hidden=256)), 0.01)
    assert cost.parameters < 1000
    assert time.thread_time() - start < 30


def test_timing_leaves_threads_and_random_numbers_as_they_were(monkeypatch: pytest.MonkeyPatch):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    step_cost(made(Adam()), 0.01)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)

    def broken(*args: object) -> tuple[float, float]:
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt

    monkeypatch.setattr("learned_optim.cost._medians", broken)
    with pytest.raises(KeyboardInterrupt):
        step_cost(made(Adam()), 0.01)
    assert torch.get_num_threads() == threads
