"""The switch of the matrix stage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from learned_optim import LearnedOptimizer, load_rule, without_matrix_stage


def parameters() -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=rng)) for shape in ((24, 16), (16,))]


def moved(rule: object, steps: int = 20) -> list[torch.Tensor]:
    """How far the parameters go on fixed gradients."""
    params = parameters()
    optimizer = LearnedOptimizer(params, rule=rule)  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=rng) + 0.3
        optimizer.step()
    return [p.detach() - q.detach() for p, q in zip(params, parameters(), strict=True)]


def test_without_it_matrices_keep_the_length_of_their_steps_and_vectors_their_steps():
    on, off = moved("default"), moved(without_matrix_stage())
    assert not torch.equal(on[0], off[0])
    assert 0.6 < off[0].norm() / on[0].norm() < 1.6
    torch.testing.assert_close(off[1], on[1])


def test_it_is_off_only_where_it_was_switched_off():
    params = parameters()
    optimizer = LearnedOptimizer(
        [{"params": params[:1], "rule": without_matrix_stage()}, {"params": params[1:]}]
    )
    configs = [group["rule_config"] for group in optimizer.param_groups]
    assert configs[0] != configs[1]
    again = LearnedOptimizer(
        [{"params": params[:1], "rule": without_matrix_stage()}, {"params": params[1:]}]
    )
    again.load_state_dict(optimizer.state_dict())


def test_twice_off_is_off():
    once = without_matrix_stage()
    assert without_matrix_stage(once) is once
    assert not once.rule.config()["matrix"]
    assert load_rule("default").rule.config()["matrix"]


def test_a_rule_without_such_a_stage_says_so():
    with pytest.raises(ValueError, match="'l2l-mnist'"):
        without_matrix_stage("l2l-mnist")
