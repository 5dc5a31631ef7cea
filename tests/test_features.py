from __future__ import annotations

import math

import pytest
import torch

from learned_optim.features import log_sign, log_sign_smoothed, raw


def scalar_log_sign(g: float, p: float) -> tuple[float, float]:
    """Appendix A of the paper, word for word, one number at a time."""
    if abs(g) >= math.exp(-p):
        return math.log(abs(g)) / p, math.copysign(1.0, g)
    return -1.0, math.exp(p) * g


@pytest.mark.parametrize("p", [1.0, 5.0, 10.0])
def test_log_sign_is_the_papers_formula(p: float):
    values = [0.0, 1e-300, -1e-12, 3e-5, -3e-5, 0.2, -0.4, 1.0, -7.0, 1e12, -1e300]
    expected = torch.tensor([scalar_log_sign(g, p) for g in values], dtype=torch.float64).T
    found = log_sign(torch.tensor(values, dtype=torch.float64), p)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-300)


def test_log_sign_is_continuous_where_the_branches_meet():
    edge = math.exp(-10.0)
    below, above = log_sign(
        torch.tensor([edge * (1 - 1e-9), edge * (1 + 1e-9)], dtype=torch.float64)
    ).unbind(-1)
    torch.testing.assert_close(below, above, rtol=0, atol=1e-8)


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-20, 1e4, 1e18, 1e38])
def test_log_sign_is_finite_and_small_over_the_whole_range_of_float32(size: float):
    found = log_sign(torch.tensor([size, -size, 0.0, -0.0]))
    assert bool(found.isfinite().all())
    assert found.abs().max() < 10


def test_features_stack_before_the_coordinates():
    grad = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    assert log_sign(grad).shape == (3, 2, 2, 5)
    assert raw(grad).shape == (3, 2, 1, 5)
    assert torch.equal(raw(grad).squeeze(-2), grad)


def test_log_sign_has_gradients_even_at_zero():
    grad = torch.tensor([0.0, 1e-30, -0.5, 2.0], requires_grad=True)
    log_sign(grad).sum().backward()
    assert grad.grad is not None
    assert bool(grad.grad.isfinite().all())


def derivative(function, grad: torch.Tensor) -> torch.Tensor:
    """Of both features by the gradient, `(2, N)`."""
    slopes = []
    for row in range(2):
        leaf = grad.clone().requires_grad_()
        slopes.append(torch.autograd.grad(function(leaf)[row].sum(), leaf)[0])
    return torch.stack(slopes)


def test_widths_change_the_derivative_and_no_value():
    grad = torch.tensor([0.0, 1e-9, -2e-5, 3e-3, -0.5, 40.0])
    widths = torch.tensor([1e-5, 1e-3, 1e-3, 1e-3, 0.5, 1.0])
    assert torch.equal(log_sign(grad, widths=widths), log_sign(grad))
    found = derivative(lambda g: log_sign(g, widths=widths), grad)
    assert torch.equal(found, derivative(lambda g: log_sign_smoothed(g, widths), grad))


@pytest.mark.parametrize("g", [0.0, 0.3, -2.0])
def test_the_smoothed_direction_is_the_mean_sign_under_noise_of_that_width(g: float):
    width = 0.7
    z = torch.linspace(-400, 400, 4_000_001, dtype=torch.float64)
    density = 2 / (math.pi * (1 + z * z) ** 2)
    mean = torch.trapezoid((g + width * z).sign() * density, z)
    grad, widths = (torch.tensor([x], dtype=torch.float64) for x in (g, width))
    direction = log_sign_smoothed(grad, widths)[1]
    torch.testing.assert_close(direction[0], mean, rtol=0, atol=2e-4)  # of the grid


def test_smoothing_keeps_the_mean_derivative_under_noise_and_not_its_variance():
    """The mean sign of 0.2 + noise, N(0, 1), rises with slope 2 p(0)."""
    noise = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grad = 0.2 + noise
    exact = 2 * math.exp(-0.02) / math.sqrt(2 * math.pi)
    own = derivative(log_sign, grad)[1]
    smooth = derivative(lambda g: log_sign(g, widths=torch.full_like(g, 0.1)), grad)[1]
    assert float(smooth.mean()) == pytest.approx(exact, rel=0.02)
    assert float(smooth.var()) < float(own.var()) / 1000
