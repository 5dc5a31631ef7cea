"""Eigenbases that follow a matrix's gradients, alone and inside the optimizer."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_training import loaded, make, parameters, randn
from torch import Tensor, nn

from learned_optim import LearnedOptimizer, bases, load_rule
from learned_optim.backends import Slot, first_stage
from learned_optim.bases import Basis
from learned_optim.rules import Default
from learned_optim.weights import LoadedRule, in_memory

RULE = Default(hidden=3, controller=5)


def followed(gradients: list[Tensor]) -> Basis:
    """The bases after these gradients, each of which turns them."""
    basis = bases.initial(*gradients[0].shape[-2:], like=gradients[0])
    for gradient in gradients:
        basis, _ = bases.follow(bases.see(gradient, basis), basis)
    return basis


def root(side: int, seed: int) -> Tensor:
    """A symmetric root of a covariance whose eigenvalues span four decades."""
    q, _ = torch.linalg.qr(randn((side, side), seed).double())
    return q @ torch.logspace(0, -2, side, dtype=torch.float64).diag() @ q.T


def apart(covariance: Tensor, basis: Tensor) -> float:
    """The largest correlation that two vectors of the basis have left."""
    seen = basis.T @ covariance @ basis
    scale = seen.diagonal().sqrt()
    return float((seen / scale / scale[:, None] - torch.eye(len(seen)).double()).abs().max())


def test_bases_become_the_eigenvectors_of_both_covariances():
    left, right = root(6, 1), root(9, 2)
    gradients = [left @ randn((6, 9), 10 + k).double() @ right for k in range(600)]
    basis = followed(gradients)
    for side, covariance in ((basis.left, left @ left), (basis.right, right @ right)):
        assert apart(covariance, torch.eye(len(side)).double()) > 0.8
        assert apart(covariance, side) < 0.45  # thirty turns are averaged over
    values = basis.spread[0, :6]
    assert torch.equal(values, values.sort(descending=True).values)


def test_what_is_seen_is_the_same_matrix():
    basis = followed([randn((5, 7), k) for k in range(20)])
    matrix = randn((5, 7), 100)
    seen = bases.see(matrix, basis)
    torch.testing.assert_close(seen.square().sum(), matrix.square().sum())
    torch.testing.assert_close(bases.unsee(seen, basis), matrix)
    assert not torch.allclose(seen, matrix, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bases_stay_orthonormal(dtype):
    basis = bases.initial(6, 4, like=torch.zeros((), dtype=dtype))
    for k in range(1, 2001):
        seen = bases.see(randn((6, 4), k).to(dtype), basis)
        basis, _ = bases.follow(seen, basis, firm=bases.is_firm(k))
    for side in (basis.left, basis.right):
        assert side.dtype == dtype
        eye = torch.eye(len(side), dtype=dtype)
        torch.testing.assert_close(side.T @ side, eye, rtol=0, atol=1e-5)


def test_one_firm_turn_squares_what_is_missing_to_orthonormal():
    basis = followed([randn((6, 4), k).double() for k in range(5)])
    loose = Basis(1.001 * basis.left, 0.999 * basis.right, basis.spread)
    firm, _ = bases.follow(bases.see(randn((6, 4), 9).double(), loose), loose)
    for side in (firm.left, firm.right):
        eye = torch.eye(len(side)).double()
        torch.testing.assert_close(side.T @ side, eye, rtol=0, atol=1e-5)


def test_bases_turn_at_the_first_and_every_second_step_and_are_firm_at_every_64th():
    assert [k for k in range(1, 9) if bases.is_due(k)] == [1, 2, 4, 6, 8]
    assert [k for k in range(1, 200) if bases.is_firm(k)] == [64, 128, 192]


def test_no_vector_turns_around():
    basis = bases.initial(6, 4, like=torch.zeros(()))
    for k in range(40):
        basis, turn = bases.follow(bases.see(randn((6, 4), k), basis), basis)
        if k >= 10:  # by then a gradient changes little
            assert turn.left.diagonal().min() > 0.5
            assert turn.right.diagonal().min() > 0.5


def test_eigenvalues_are_means_of_thirty_turns_above_a_ridge():
    sizes = torch.tensor([3.0, 2.0, 1.0]).double()
    news = sizes.square() / sizes.diag().square().mean()
    basis, expected = bases.initial(3, 3, like=sizes), torch.zeros(3).double()
    for _ in range(5):
        basis, _ = bases.follow(bases.see(sizes.diag(), basis), basis)
        expected = expected - expected / 30 + news / 30 + 1e-4 * (1 + news.mean())
    torch.testing.assert_close(basis.spread, torch.cat((expected, expected))[None])


def test_what_was_summed_up_turns_along():
    old = followed([randn((5, 7), k) for k in range(20)])
    momentum, gradient = randn((5, 7), 30), randn((5, 7), 31)
    new, turn = bases.follow(bases.see(gradient, old), old)
    torch.testing.assert_close(turn.apply(bases.see(momentum, old)), bases.see(momentum, new))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_gradient_turns_nothing(broken: float):
    old = followed([randn((5, 7), k) for k in range(20)])
    gradient = randn((5, 7), 30)
    gradient[2, 3] = broken
    new, turn = bases.follow(bases.see(gradient, old), old, firm=False)
    assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
    assert torch.equal(turn.left, torch.eye(5))
    assert torch.equal(turn.right, torch.eye(7))


@pytest.mark.parametrize("due", [True, False])
def test_where_no_host_knows_a_tensor_says_whether_it_turns(due: bool):
    old = followed([randn((5, 7), k) for k in range(20)])
    seen = bases.see(randn((5, 7), 30), old)
    new, _ = bases.follow(seen, old, torch.tensor(due), firm=False)
    expected = bases.follow(seen, old, firm=False)[0] if due else old
    assert all(torch.equal(a, b) for a, b in zip(new, expected, strict=True))


def test_gradients_of_zero_leave_the_basis_as_it_is():
    basis = followed([torch.zeros(4, 6)] * 5)
    assert torch.equal(basis.left, torch.eye(4))
    assert torch.equal(basis.right, torch.eye(6))


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("size", [5e-20, 1e-22, 1e-30, 1e-38])
def test_gradients_too_small_to_be_squared_count_as_zero(size: float, flush: bool):
    before = [randn((4, 6), k) for k in range(8)]
    if flush and not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush subnormals")
    try:
        tiny = followed([*before, size * randn((4, 6), 9)])
    finally:
        torch.set_flush_denormal(False)
    zero = followed([*before, torch.zeros(4, 6)])
    for a, b in zip(tiny, zero, strict=True):
        torch.testing.assert_close(a, b)


def test_the_size_of_gradients_does_not_matter():
    gradients = [randn((4, 6), k) for k in range(8)]
    plain = followed(gradients)
    for size in (1e-12, 1e12):
        scaled = followed([size * gradient for gradient in gradients])
        for a, b in zip(plain, scaled, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "pays"),
    [
        ((2, 2), True),
        ((128, 128), True),
        ((129, 129), False),
        ((20, 100), True),
        ((19, 100), False),
        ((100, 19), True),
        ((128, 4), True),
        ((128, 3), False),
        ((129, 4), False),
        ((11, 2), False),
        ((10, 2), True),
        ((1, 1), False),
        ((1, 4), False),
    ],
)
def test_which_matrices_have_bases(shape: tuple[int, int], pays: bool):
    assert bases.pays(*shape) is pays
    assert Default().has_basis(shape) is pays
    assert Default().waits(shape) is (min(shape) > 1)
    assert not Default(matrix=False).has_basis(shape)
    assert not Default(basis=False).has_basis(shape)


def trained(rule: LoadedRule, steps: int = 300) -> float:
    """A linear map fitted to another one; inputs whose covariance is neither round nor aligned."""
    rng = torch.Generator().manual_seed(3)
    q, _ = torch.linalg.qr(torch.randn(16, 16, generator=rng))
    shape = torch.logspace(0, -2, 16).diag() @ q.T
    target = torch.randn(12, 16, generator=rng)
    weight = nn.Parameter(0.1 * torch.randn(12, 16, generator=rng))
    optimizer = LearnedOptimizer([weight], rule=rule, total_steps=steps)
    loss = torch.zeros(())
    for _ in range(steps):
        inputs = torch.randn(32, 16, generator=rng) @ shape
        optimizer.zero_grad()
        loss = (inputs @ (weight - target).T).square().mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_they_help_where_gradients_are_correlated():
    shipped = load_rule("default")
    without = in_memory(
        dataclasses.replace(shipped.rule, basis=False), shipped.weights, name="without"
    )
    assert trained(shipped) < 0.5 * trained(without)


def run(params: list[nn.Parameter], groups: list[list[nn.Parameter]]) -> list[Tensor]:
    optimizers = [make(group, loaded(RULE)) for group in groups]
    for k in range(7):
        for index, param in enumerate(params):
            param.grad = randn(param.shape, 100 * k + index)
        for optimizer in optimizers:
            optimizer.step()
    return [param.detach().clone() for param in params]


SHAPES = ((6, 4), (6, 4), (5,), (6, 4), (3, 2, 2, 2))


def test_matrices_that_share_a_call_equal_those_alone():
    first, second = parameters(SHAPES), parameters(SHAPES)
    together = run(first, [first])
    alone = run(second, [[param] for param in second])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_matrices_of_different_ages_turn_each_at_its_own_steps():
    shapes = ((6, 4), (6, 4))
    together, alone = parameters(shapes), parameters(shapes)
    optimizers = [make(group, loaded(RULE)) for group in (together, alone[:1], alone[1:])]
    for k in range(8):
        for params in (together, alone):
            for index, param in enumerate(params):
                param.grad = randn(param.shape, 100 * k + index) if k >= index else None
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_an_unknown_age_changes_nothing(monkeypatch):
    first, second = parameters(SHAPES), parameters(SHAPES)
    known = run(first, [first])
    monkeypatch.setattr(LearnedOptimizer, "_age", lambda *_: None)
    unknown = run(second, [second])
    for a, b in zip(known, unknown, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def slots_of(shapes):
    return [
        Slot(param, param, Default().init_state(param), torch.tensor(0.0), tuple(param.shape))
        for param in parameters(shapes)
    ]


def test_a_portion_has_few_numbers_of_bases(monkeypatch):
    monkeypatch.setattr(first_stage, "PORTION", 110)  # two of 6 x 4, not three
    rule = Default()
    slots = slots_of(((6, 4), (100,), (6, 4), (6, 4), (9, 9), (3,)))
    found = [list(part) for part in first_stage.portions(rule, slots)]
    assert found == [[0, 1, 2], [3], [4, 5]]
    assert [list(part) for part in first_stage.portions(Default(matrix=False), slots)] == [
        [0, 1, 2, 3, 4, 5]
    ]
    # Tall ones have as few numbers of their own, but bases of many.
    assert [len(part) for part in first_stage.portions(rule, slots_of([(24, 4)] * 3))] == [1, 1, 1]
