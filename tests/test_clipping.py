"""What a gradient may count for in the momentum: `rules.clipping`."""

from __future__ import annotations

import math

import pytest
import torch
from backend_batches import make
from torch import Tensor, nn

from learned_optim import LearnedOptimizer, load_rule
from learned_optim.backends import Eager
from learned_optim.rules import Default
from learned_optim.rules.clipping import FIRST, clipping, squares_before
from learned_optim.rules.default import SIGNALS
from learned_optim.rules.hand import HAND, hand_weights

MOST = math.exp(HAND["log_clip"][0])
BETA2 = torch.tensor(HAND["logit_beta2"]).sigmoid()


def factor(g2: float, v: float, step: float, m2: float | None = None) -> float:
    """For mean squares of a gradient, of those before as they are stored, and of the momentum."""
    m2 = v if m2 is None else m2
    means = {"g2": torch.tensor([g2]), "v": torch.tensor([v]), "m2": torch.tensor([m2])}
    return clipping(means, BETA2, torch.tensor([step]), hand_weights()).item()


def stored(mean: float, step: float) -> float:
    """The running mean of `step - 1` squares of that mean, before its correction."""
    return mean * (1 - BETA2.item() ** (step - 1))


@pytest.mark.parametrize("times", [0.1, 1.0, MOST, 3.0, 1000.0])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("step", [11.0, 5000.0])
def test_a_gradient_counts_for_a_multiple_of_those_before(times: float, scale: float, step: float):
    found = factor((times * scale) ** 2, stored(scale**2, step), step)
    assert found == pytest.approx(min(1.0, MOST / times), rel=1e-4)


@pytest.mark.parametrize(("v", "step"), [(stored(1.0, FIRST), FIRST), (0.0, 50.0), (1e-35, 50.0)])
def test_the_first_ones_and_those_after_none_count_in_full(v: float, step: float):
    assert factor(1e6, v, step) == 1.0


def test_after_a_time_without_gradients_the_next_counts_in_full():
    """A gradient of 1, then steps without any, by which both moments decay, then another of 1."""
    beta1, beta2 = (torch.tensor(HAND[f"logit_beta{k}"]).sigmoid().item() for k in (1, 2))
    factors = [
        factor(1.0, (1 - beta2) * beta2**k, 500.0, (1 - beta1) ** 2 * beta1 ** (2 * k))
        for k in (0, 5, 15, 25, 60)
    ]
    assert factors[3:] == [1.0, 1.0]
    clipped = [MOST * ((1 - beta2) * beta2**k) ** 0.5 for k in (0, 5, 15)]
    assert max(clipped) < 1
    assert factors[:3] == pytest.approx(clipped, rel=1e-4)


def test_what_is_used_once_in_fifty_steps_does_not_starve():
    """Full steps go its way, whatever the steps without a gradient between."""
    param = nn.Parameter(torch.ones(5))
    optimizer = LearnedOptimizer([param], load_rule("default"))
    moments = []
    for step in range(500):
        param.grad = torch.full((5,), 0.0 if step % 50 else 1.0)
        optimizer.step()
        moments += [] if step % 50 else [optimizer.state[param]["moments"][0].clone()]
    beta1 = torch.tensor(HAND["logit_beta1"]).sigmoid()
    for m in moments:
        torch.testing.assert_close(m, (1 - beta1) * torch.ones(5))


def test_the_mean_before_does_not_know_this_one():
    means = {"v": torch.tensor([stored(4.0, 7.0)])}
    found = squares_before(means, BETA2, torch.tensor([7.0]))
    torch.testing.assert_close(found, torch.tensor([4.0]))
    first = squares_before({"v": torch.zeros(1)}, BETA2, torch.ones(1))
    assert first.item() == 0.0


@pytest.mark.parametrize(
    ("g2", "v"), [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1e28, 1e-25), (4.0, 1.0)]
)
def test_its_derivative_is_finite(g2: float, v: float):
    leaves = {k: torch.tensor([x], requires_grad=True) for k, x in (("g2", g2), ("v", v))}
    means = leaves | {"m2": torch.tensor([v])}
    factor = clipping(means, BETA2, torch.tensor([100.0]), hand_weights())
    factor.sum().backward()
    assert all(
        leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in leaves.values()
    )


def run(sizes: list[float], fused: bool | None) -> tuple[list[Tensor], Tensor]:
    """Steps of a parameter whose gradients have these sizes, and its moments in the end."""
    param = nn.Parameter(torch.ones(5))
    optimizer = LearnedOptimizer([param], load_rule("default"), fused=fused)
    steps = []
    for size in sizes:
        before = param.detach().clone()
        param.grad = torch.full((5,), size)
        optimizer.step()
        steps.append(param.detach() - before)
    return steps, optimizer.state[param]["moments"]


@pytest.mark.parametrize("fused", [False, None])
def test_a_rare_gradient_counts_no_more_than_one_of_the_bound(fused: bool | None):
    (m, v, _), (m_huge, v_huge, _) = (
        run([1.0] * 30 + [size], fused)[1] for size in (-MOST, -1000.0)
    )
    torch.testing.assert_close(m_huge, m)
    # The second moment sees all of it, so steps after it are shorter, and not longer.
    torch.testing.assert_close(v_huge - v, (1 - BETA2) * (1000.0**2 - MOST**2) * torch.ones(5))


@pytest.mark.parametrize("times", [30.0, 1e6])
def test_a_lasting_change_of_scale_does_not_change_the_steps_for_long(times: float):
    jumped, _ = run([1.0] * 30 + [times] * 200, fused=False)
    even, _ = run([1.0] * 230, fused=False)
    ratios = [(a.mean() / b.mean()).item() for a, b in zip(jumped, even, strict=True)]
    assert all(0.2 < ratio < 4 for ratio in ratios), ratios


def test_the_batches_that_backends_are_compared_on_have_some_that_are_clipped():
    batch = make(Default())
    backend = Eager()
    signals = backend.control(batch, backend.survey(batch), None)
    clipped = signals[SIGNALS.index("clip")] < 1
    assert clipped.any()
    assert not clipped.all()
