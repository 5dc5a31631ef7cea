"""`LearnedOptimizer.averaged`: parameters at the mean of where the steps have led."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from learned_optim import LearnedOptimizer, load_rule
from learned_optim.rules import Default

SHARE = 0.6  # of each step that is taken later
SHAPES = ((6, 4), (4,), (40, 3, 2), (200, 150), (), (0, 3))


def trained(steps: int = 12, dtype: torch.dtype = torch.float32, **options: object):
    """Parameters after some steps, their optimizer, and the mean of where steps have led."""
    params = [
        nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(dtype))
        for i, shape in enumerate(SHAPES)
    ]
    optimizer = LearnedOptimizer(params, **options)  # type: ignore[arg-type]
    wholes = [param.detach().double().clone() for param in params]
    means = list(wholes)
    for k in range(1, steps + 1):
        for i, param in enumerate(params):
            noise = torch.randn(param.shape, generator=torch.Generator().manual_seed(50 * k + i))
            param.grad = (noise + param.detach()).to(dtype)
        before = [param.detach().double().clone() for param in params]
        optimizer.step()
        for i, param in enumerate(params):
            # The parameter is between where whole steps lead and their mean, at a share s of the
            # way, so with z' = z + u and x' = x + d (z' - x) its move is 1 - s of u and s of
            # d (z' - x).
            due = 4 / (k + 3)
            moved = param.detach().double() - before[i]
            step = moved - SHARE * due * (wholes[i] - means[i])
            step = step / (1 - SHARE + SHARE * due)
            wholes[i] = wholes[i] + step
            means[i] = means[i] + due * (wholes[i] - means[i])
    return params, optimizer, means


def copies(params: list[nn.Parameter]) -> list[Tensor]:
    return [param.detach().clone() for param in params]


@pytest.mark.parametrize("fused", [None, False])
def test_within_they_are_at_the_mean_and_afterwards_back_to_the_bit(fused: bool | None):
    params, optimizer, means = trained(fused=fused)
    before = copies(params)
    with optimizer.averaged():
        for param, mean, old in zip(params, means, before, strict=True):
            torch.testing.assert_close(param.detach().double(), mean, rtol=1e-4, atol=1e-5)
            assert not param.numel() or not torch.equal(param, old)
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))


def test_training_goes_on_as_if_nobody_had_looked():
    (ours, optimizer, _), (theirs, other, _) = trained(), trained()
    for k in range(3):
        with optimizer.averaged():
            pass
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.full_like(a, k + 1.0)
            b.grad = torch.full_like(b, k + 1.0)
        optimizer.step()
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_an_error_within_does_not_keep_them_there():
    params, optimizer, _ = trained()
    before = copies(params)
    with pytest.raises(KeyError), optimizer.averaged():
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
    optimizer.step()


def test_neither_a_step_nor_a_second_look_within():
    params, optimizer, _ = trained()
    with optimizer.averaged():
        within = copies(params)
        with pytest.raises(RuntimeError, match="Take steps outside"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="in use"), optimizer.averaged():
            pass
        assert all(torch.equal(a, b) for a, b in zip(within, params, strict=True))
        twin = copy.deepcopy(optimizer)
    twin.step()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype):
    params, optimizer, means = trained(dtype=dtype)
    before = copies(params)
    with optimizer.averaged():
        near = 0.05 if dtype == torch.bfloat16 else 1e-9
        for param, mean in zip(params, means, strict=True):
            torch.testing.assert_close(param.detach().double(), mean, rtol=near, atol=near)
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))


def test_a_mean_in_bfloat16_is_rounded_once():
    params, optimizer, _ = trained(dtype=torch.bfloat16)
    owed = [optimizer.state[param]["moments"][2] for param in params]
    share = Default().share(load_rule("default").weights, None)
    means = [
        param.detach().float() - (1 - share) * late
        for param, late in zip(params, owed, strict=True)
    ]
    with optimizer.averaged():
        assert all(torch.equal(a, b.bfloat16()) for a, b in zip(params, means, strict=True))


def test_a_run_that_defers_nothing_has_its_mean_where_steps_have_led_too():
    """Of 60 steps no share waits, so the parameters are where whole steps lead."""
    param = nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    optimizer = LearnedOptimizer([param], total_steps=60)
    mean = param.detach().clone()
    for k in range(1, 13):
        param.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(k))
        optimizer.step()
        mean += 4 / (k + 3) * (param.detach() - mean)
    with optimizer.averaged():
        torch.testing.assert_close(param.detach(), mean, rtol=1e-4, atol=1e-6)


def test_nothing_moves_that_has_no_mean():
    fresh = nn.Parameter(torch.ones(3, 3))
    with LearnedOptimizer([fresh]).averaged():
        assert torch.equal(fresh, torch.ones(3, 3))
    params, optimizer, _ = trained(rule="l2l-quadratic")
    before = copies(params)
    with optimizer.averaged():
        assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))


def test_the_factor_on_the_steps_counts():
    params, optimizer, _ = trained()
    optimizer.param_groups[0]["lr"] = torch.tensor(0.0)
    before = copies(params)
    with optimizer.averaged():
        assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))


@pytest.mark.parametrize(("lr", "shape"), [([1.0], ()), ([[1.0]], (5,))])
def test_a_factor_of_any_one_element_shape(lr: object, shape: tuple[int, ...]):
    param = nn.Parameter(torch.ones(shape))
    optimizer = LearnedOptimizer([param], lr=torch.tensor(lr))
    param.grad = torch.ones(shape)
    for _ in range(3):
        optimizer.step()
    before = param.detach().clone()
    with optimizer.averaged():
        assert not torch.equal(param, before)
    assert torch.equal(param, before)


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("shape", [(6, 4), (5,), (200, 150)])
def test_parameters_on_one_memory_come_back_too(shape: tuple[int, ...], fused: bool | None):
    first, second = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.empty(shape))
    second.data = first.data
    optimizer = LearnedOptimizer([first, second], fused=fused)
    for param in (first, second):
        param.grad = torch.ones(shape)
    for _ in range(3):
        optimizer.step()
    before = first.detach().clone()
    with optimizer.averaged():
        assert not torch.equal(first, before)
    assert torch.equal(first, before)


def test_what_autocast_has_cast_is_cast_anew():
    # Wide enough that some output differs in bfloat16, as near as the mean may be.
    torch.manual_seed(0)
    model, inputs = nn.Linear(64, 32), torch.ones(2, 64)
    optimizer = LearnedOptimizer(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()

    def outputs() -> Tensor:
        return model(inputs).detach()

    with torch.autocast("cpu", torch.bfloat16):
        usual = outputs()
    with optimizer.averaged(), torch.autocast("cpu", torch.bfloat16):
        mean = outputs()
    assert not torch.equal(usual, mean)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(outputs(), usual)
        with optimizer.averaged():
            assert torch.equal(outputs(), mean)
        assert torch.equal(outputs(), usual)


def test_amid_noise_the_mean_is_nearer_to_the_minimum():
    generator = torch.Generator().manual_seed(0)
    param = nn.Parameter(torch.randn(30, 20, generator=generator))
    optimizer = LearnedOptimizer([param])
    for _ in range(1500):
        param.grad = param.detach() - 1 + 3 * torch.randn(30, 20, generator=generator)
        optimizer.step()

    def error(point: Tensor) -> float:
        return float((point.detach() - 1).square().mean())

    owed = optimizer.state[param]["moments"][2]
    last, halfway, whole = (error(param + part * owed) for part in (0, SHARE - 0.5, SHARE))
    with optimizer.averaged():
        assert error(param) < 0.8 * halfway
        assert error(param) < 0.95 * last < 0.5 * whole
