"""The kernel of one step's vector-Jacobian product against autograd through the rule in float64.

Expected rounding: 1e-6 of the largest entry is typical, 1e-4 allowed. Cotangents of gradients
differ by many orders of magnitude between coordinates, so each is first divided by the slope of
its own features.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from learned_optim import kernels
from learned_optim.rules.base import Coordinates
from learned_optim.rules.l2l import L2L

CASES = [
    (1, 4, "none"),
    (2, 4, "log_sign"),
    (1, 8, "log_sign"),
    (2, 8, "none"),
    (1, 20, "log_sign"),
    (2, 20, "log_sign"),
    (2, 20, "none"),
    (3, 7, "log_sign"),
    (1, 1, "log_sign"),
]


pytestmark = pytest.mark.usefixtures("built_kernels")


def make(layers=2, hidden=20, preprocess: Any = "log_sign", scale=0.5):
    """A rule, its weights with a head of full size, the same flat, and the kernel's keywords."""
    rule = L2L(layers=layers, hidden=hidden, preprocess=preprocess, scale=scale)
    weights = rule.init_weights(torch.Generator().manual_seed(3))
    weights["head.w"] *= 100.0
    flat = torch.cat([weights[name].reshape(-1) for name in rule.weight_shapes()])
    p = rule.p if preprocess == "log_sign" else None
    return rule, weights, flat, {"layers": layers, "hidden": hidden, "p": p, "scale": scale}


def draw(rule, n, lead=(), seed=0):
    """Gradients (on both sides of e^-p; the first is zero), state and the two cotangents."""
    generator = torch.Generator().manual_seed(seed)
    rows = rule.state_spec["cell"].rows
    grads = torch.randn(*lead, n, generator=generator)
    if rule.preprocess == "log_sign":
        grads *= 10 ** (16 * torch.rand(*lead, n, generator=generator) - 10)
    grads[..., 0] = 0.0
    state = 0.5 * torch.randn(*lead, rows, n, generator=generator)
    cotangents = torch.randn(*lead, n, generator=generator)
    return grads, state, cotangents, torch.randn(*lead, rows, n, generator=generator)


def reference(rule, weights, inputs, widths=None):
    """Gradients by the weights (flat), the gradients and the state, by autograd in float64."""
    weights = {name: value.double().requires_grad_() for name, value in weights.items()}
    grads, state, step_cotangents, state_cotangents = (each.double() for each in inputs)
    grads.requires_grad_()
    state.requires_grad_()
    coords = Coordinates(grads, grads, None if widths is None else widths.double())
    step, after = rule.update(coords, {"cell": state}, grads.new_zeros(0, 1), weights)
    loss = (step * step_cotangents).sum() + (after["cell"] * state_cotangents).sum()
    names = rule.weight_shapes()
    found = torch.autograd.grad(loss, [*(weights[name] for name in names), grads, state])
    return list(found[:-2]), found[-2], found[-1]


def slope(rule, grads):
    """The largest derivative of a coordinate's features by its gradient."""
    if rule.preprocess == "none":
        return torch.ones_like(grads, dtype=torch.float64)
    size = grads.double().abs()
    small = size < math.exp(-rule.p)
    return torch.where(small, math.exp(rule.p), 1.0 / (rule.p * size))


def assert_close(found, expected, tolerance=1e-4):
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max()


def assert_equals_autograd(rule, weights, flat, sizes, inputs):
    wanted_weights, wanted_grads, wanted_state = reference(rule, weights, inputs)
    weight_grads, grads, state = kernels.lstm_vjp(*inputs, weights=flat, **sizes)
    parts = weight_grads.split([part.numel() for part in wanted_weights])
    for part, wanted in zip(parts, wanted_weights, strict=True):
        assert_close(part.view_as(wanted), wanted)
    by = slope(rule, inputs[0])
    assert_close(grads / by, wanted_grads / by)
    assert_close(state, wanted_state)


@pytest.mark.parametrize(("layers", "hidden", "preprocess"), CASES)
@pytest.mark.parametrize("n", [1, 3, 63, 64, 65, 1000])
def test_all_three_gradients_equal_autograd_in_float64(level, layers, hidden, preprocess, n):
    rule, weights, flat, sizes = make(layers, hidden, preprocess)
    assert_equals_autograd(rule, weights, flat, sizes, draw(rule, n))


@pytest.mark.parametrize("lead", [(3,), (5,)])
def test_leading_indices_share_the_weights(level, lead):
    rule, weights, flat, sizes = make(2, 8)
    assert_equals_autograd(rule, weights, flat, sizes, draw(rule, 70, lead))


def test_coordinates_beyond_one_chunk_of_work_are_all_counted(level):
    rule, weights, flat, sizes = make(1, 4)
    assert_equals_autograd(rule, weights, flat, sizes, draw(rule, 20_001))


@pytest.mark.parametrize("which", [2, 3])
def test_each_of_the_two_cotangents_alone_is_followed(which):
    rule, weights, flat, sizes = make(2, 8)
    inputs = [*draw(rule, 65)]
    inputs[which] = torch.zeros_like(inputs[which])
    assert_equals_autograd(rule, weights, flat, sizes, inputs)


@pytest.mark.parametrize("preprocess", ["none", "log_sign"])
def test_a_leading_index_does_not_change_a_bit(preprocess):
    rule, _, flat, sizes = make(1, 8, preprocess)
    inputs = draw(rule, 45, (3,))
    _, grads, state = kernels.lstm_vjp(*inputs, weights=flat, **sizes)
    for index in range(3):
        alone = (each[index] for each in inputs)
        _, grads_alone, state_alone = kernels.lstm_vjp(*alone, weights=flat, **sizes)
        assert torch.equal(grads[index], grads_alone)
        assert torch.equal(state[index], state_alone)


@pytest.mark.parametrize("p", [1.0, 10.0, 50.0])
def test_zero_subnormal_and_huge_gradients_give_the_finite_slopes_of_autograd(level, p):
    rule = L2L(layers=1, hidden=4, p=p)
    weights = rule.init_weights(torch.Generator().manual_seed(3))
    flat = torch.cat([weights[name].reshape(-1) for name in rule.weight_shapes()])
    sizes = {"layers": 1, "hidden": 4, "p": p, "scale": rule.scale}
    edge = math.exp(-p)
    values = [0.0, 1e-45, 1e-40, 2e-38, 0.999 * edge, 1.001 * edge, 1.0, 1e15, 1e30]
    inputs = [*draw(rule, 2 * len(values))]
    inputs[0] = torch.tensor([*values, *(-value for value in values)])
    _, wanted, _ = reference(rule, weights, inputs)
    _, found, _ = kernels.lstm_vjp(*inputs, weights=flat, **sizes)
    by = slope(rule, inputs[0])
    assert_close(found / by, wanted / by)


def test_the_largest_gradients_give_finite_results(level):
    _, _, flat, sizes = make(1, 4)
    inputs = draw(L2L(layers=1, hidden=4), 2)
    inputs[0].copy_(torch.tensor([3.4e38, -3.4e38]))
    found = kernels.lstm_vjp(*inputs, weights=flat, **sizes)
    assert all(part.isfinite().all() for part in found)


def test_the_number_of_threads_does_not_change_a_bit():
    rule, _, flat, sizes = make()
    inputs = draw(rule, 4100, (2,))
    one = kernels.lstm_vjp(*inputs, weights=flat, **sizes, threads=1)
    for threads in (2, 3, 7):
        several = kernels.lstm_vjp(*inputs, weights=flat, **sizes, threads=threads)
        assert all(map(torch.equal, one, several))


def test_the_inputs_are_left_alone():
    rule, _, flat, sizes = make(1, 4)
    inputs = draw(rule, 40)
    before = [each.clone() for each in inputs]
    kernels.lstm_vjp(*inputs, weights=flat, **sizes)
    assert all(map(torch.equal, inputs, before))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grads": torch.zeros(5, dtype=torch.float64)}, "grads must be float32"),
        ({"grads": torch.zeros(10)[::2]}, "grads must be contiguous"),
        ({"grads": torch.zeros(0)}, r"P, N > 0 but has \(0,\)"),
        ({"grads": torch.zeros(1, 1, 5)}, r"grads must be \(N,\) or \(P, N\)"),
        ({"state": torch.zeros(7, 5)}, r"state must have shape \(8, 5\)"),
        ({"step_cotangents": torch.zeros(4)}, "step_cotangents must have shape"),
        ({"state_cotangents": torch.zeros(2, 8, 5)}, "state_cotangents must have shape"),
        ({"weights": torch.zeros(3)}, "weights must have shape"),
        ({"layers": 9}, r"layers must be in \[1, 8\] but is 9"),
        ({"hidden": 0}, "hidden must be in"),
        ({"p": -1.0}, "p must be in"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    rule, _, flat, sizes = make(1, 4)
    names = ("grads", "state", "step_cotangents", "state_cotangents")
    arguments = dict(zip(names, draw(rule, 5), strict=True)) | {"weights": flat}
    with pytest.raises(ValueError, match=message):
        kernels.lstm_vjp(**(arguments | sizes | change))


@pytest.mark.parametrize("lead", [(), (3,)])
def test_widths_give_the_derivative_of_smoothed_features(level, lead):
    rule, weights, flat, sizes = make(2, 8)
    inputs = draw(rule, 77, lead)
    widths = inputs[0].abs() + 1e-5  # of the gradients' own size, where it matters most
    wanted_weights, wanted_grads, wanted_state = reference(rule, weights, inputs, widths)
    weight_grads, grads, state = kernels.lstm_vjp(*inputs, weights=flat, widths=widths, **sizes)
    assert_close(weight_grads, torch.cat([part.flatten() for part in wanted_weights]))
    assert_close(grads * widths, wanted_grads * widths)
    assert_close(state, wanted_state)


def test_widths_of_another_shape_are_refused():
    rule, _, flat, sizes = make(1, 4)
    with pytest.raises(ValueError, match="widths"):
        kernels.lstm_vjp(*draw(rule, 9), weights=flat, widths=torch.ones(8), **sizes)
