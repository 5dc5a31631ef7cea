"""State in float16: the option, and the kernels' arithmetic in 16 bits against float64.

Expected rounding: h in float16 and in multiples of 2^-15, arguments of activations in multiples of
2^-12, weights in 13 to 15 bits: 1e-4 in each activation, 2e-3 of the typical step, and the state
off by one or two of float16's last places. Without AVX2 arithmetic is in float32 and all of it well
within these bounds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import half_state, readme_tables
from learned_optim import LearnedOptimizer, LoadedRule, kernels, load_rule, with_half_state
from learned_optim.backends import Batch, Cpu, Eager, Slot
from learned_optim.kernels import native
from learned_optim.rules import L2L, ByLayer, Coordinates, Weights
from learned_optim.tasks import Quadratic
from learned_optim.weights import bundled_names, load_bundled

SIZES = [(0,), (), (1,), (3,), (31,), (32,), (33,), (5, 13), (511,), (512,), (513,), (2049,)]
RULES = [
    L2L(state="float16"),
    L2L(layers=1, hidden=8, state="float16"),
    L2L(layers=1, hidden=4, state="float16"),
    L2L(layers=3, hidden=6, p=2.0, state="float16"),
    L2L(layers=2, hidden=2, state="float16"),
]


def drawn(rule: L2L, scale: float = 3.0) -> Weights:
    """Weights of some size, with a head that says something."""
    rng = torch.Generator().manual_seed(3)
    weights = {key: scale * value for key, value in rule.init_weights(rng).items()}
    return weights | {"head.w": torch.randn(weights["head.w"].shape, generator=rng)}


def make(rule: L2L, weights: Weights, sizes: list[tuple[int, ...]] = SIZES) -> Batch:
    rng = torch.Generator().manual_seed(5)
    slots = []
    for shape in sizes:
        param = torch.randn(shape, generator=rng)
        grad = torch.randn(shape, generator=rng) * 10 ** (8 * torch.rand(shape, generator=rng) - 7)
        state = rule.init_state(param)
        # An h is between -1 and 1.
        state["cell"].copy_((0.4 * torch.randn(state["cell"].shape, generator=rng)).clamp(-1, 1))
        slots.append(Slot(param, grad, state, torch.tensor(0.0), shape))
    return Batch(
        rule, weights, slots, device=torch.device("cpu"), compute_dtype=torch.float32,
        lr=1.0, decay=0.0, maximize=False, total_steps=None,
    )  # fmt: skip


def exactly(rule: L2L, weights: Weights, slot: Slot) -> tuple[torch.Tensor, torch.Tensor]:
    """Step and state in float64."""
    grad = slot.grad.reshape(-1).double()
    rows = slot.state["cell"].reshape(rule.state_spec["cell"].rows, grad.numel()).double()
    step, state = rule.update(
        Coordinates(grad, grad), {"cell": rows}, grad.new_zeros(0, 1),
        {key: value.double() for key, value in weights.items()},
    )  # fmt: skip
    return step.view(slot.shape), state["cell"].view(slot.state["cell"].shape)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_step_is_that_of_float64_but_for_rounding(level: str, rule: L2L):
    weights = drawn(rule)
    batch = make(rule, weights)
    wanted = [exactly(rule, weights, slot) for slot in batch.slots]
    before = [slot.param.clone() for slot in batch.slots]
    Cpu().move(batch, torch.zeros(0, len(batch.slots)), None)
    typical = wanted[-1][0].std()
    for slot, old, (step, state) in zip(batch.slots, before, wanted, strict=True):
        moved = slot.param.double() - old.double()
        assert slot.param.shape == old.shape
        torch.testing.assert_close(moved, step, atol=5e-3 * typical.item(), rtol=0)
        torch.testing.assert_close(slot.state["cell"].double(), state, atol=1e-3, rtol=2e-3)
    errors = (batch.slots[-1].param.double() - before[-1].double() - wanted[-1][0]) / typical
    assert errors.square().mean().sqrt() < 1e-3
    assert abs(errors.mean()) < 5e-4


def test_a_tensor_may_end_anywhere_in_a_register(level: str):
    rule = RULES[2]
    weights = drawn(rule)
    batch = make(rule, weights, [(count,) for count in range(1, 70)])
    wanted = [exactly(rule, weights, slot) for slot in batch.slots]
    before = [slot.param.clone() for slot in batch.slots]
    Cpu().move(batch, torch.zeros(0, len(batch.slots)), None)
    typical = torch.cat([step for step, _ in wanted]).std().item()
    for slot, old, (step, state) in zip(batch.slots, before, wanted, strict=True):
        moved = slot.param.double() - old.double()
        torch.testing.assert_close(moved, step, atol=5e-3 * typical, rtol=0)
        torch.testing.assert_close(slot.state["cell"].double(), state, atol=1e-3, rtol=2e-3)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_it_is_computed_in_16_bits_where_the_cpu_can(level: str, rule: L2L):
    weights = drawn(rule)
    batch = make(rule, weights, [(2049,)])
    slot = batch.slots[0]
    before, (step, _) = slot.param.double(), exactly(rule, weights, slot)
    Cpu().move(batch, torch.zeros(0, 1), None)
    error = (slot.param.double() - before - step).square().mean().sqrt() / step.std()
    assert (error > 2e-5) == (level != "baseline")


@pytest.fixture
def without_dot_products() -> Iterator[Callable[[], object]]:
    """Called, makes the kernels compute as on a CPU that has no products of pairs."""
    switch = native.library().learned_optim_set_dot_products
    yield lambda: switch(0)
    switch(1)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_sums_are_exact_whatever_instruction_makes_them(
    level: str, without_dot_products: Callable[[], object], rule: L2L
):
    def moved() -> list[torch.Tensor]:
        batch = make(rule, drawn(rule))
        Cpu().move(batch, torch.zeros(0, len(batch.slots)), None)
        return [x for slot in batch.slots for x in (slot.param, slot.state["cell"])]

    best = moved()
    without_dot_products()
    for one, two in zip(best, moved(), strict=True):
        assert torch.equal(one, two)


def served() -> list[str]:
    return [name for name in bundled_names() if type(load_bundled(name).rule) is L2L]


@pytest.mark.parametrize("name", served())
def test_a_thousand_steps_of_bundled_rules_stay_beside_eager(level: str, name: str):
    loaded = with_half_state(name)
    rule = loaded.rule
    assert isinstance(rule, L2L)
    ours, theirs = (make(rule, dict(loaded.weights), [(37,), (64,)]) for _ in range(2))
    rng = torch.Generator().manual_seed(0)
    for _ in range(1000):
        for index, size in enumerate((37, 64)):
            grad = torch.randn(size, generator=rng) * 10 ** (
                6 * torch.rand(size, generator=rng) - 5
            )
            ours.slots[index].grad = theirs.slots[index].grad = grad
        Cpu().move(ours, torch.zeros(0, 2), None)
        Eager().move(theirs, torch.zeros(0, 2), None)
    for a, b in zip(ours.slots, theirs.slots, strict=True):
        # A thousand roundings of 1e-4 of a step of up to 0.1 each, few of them alike.
        torch.testing.assert_close(a.param, b.param, atol=0.02, rtol=0)
        torch.testing.assert_close(a.state["cell"], b.state["cell"], atol=0.02, rtol=0.01)


def test_results_do_not_depend_on_the_number_of_threads(level: str):
    rule = RULES[1]
    flat = torch.cat([value.reshape(-1) for value in drawn(rule).values()])
    results = []
    for threads in (1, 2, 5):
        batch = make(rule, drawn(rule), [(70_001,), (5,), (4096,)])
        params, grads = [slot.param for slot in batch.slots], [slot.grad for slot in batch.slots]
        states = [slot.state["cell"] for slot in batch.slots]
        sizes = {"layers": 1, "hidden": 8, "p": 10.0}
        kernels.cells_update_(params, grads, states, flat, **sizes, threads=threads)
        results.append([*params, *states])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [3, 11], ids=["h", "c"])
@pytest.mark.parametrize("lane", [40, 699])
def test_what_is_not_finite_keeps_parameter_and_state(
    level: str, value: float, row: int, lane: int
):
    rule = RULES[1]
    batch = make(rule, drawn(rule), [(700,)])
    slot = batch.slots[0]
    slot.grad[690] = math.nan
    slot.state["cell"][row, lane] = value
    param, cell = slot.param.clone(), slot.state["cell"].clone()
    Cpu().move(batch, torch.zeros(0, 1), None)
    # In float32 an infinite memory, whose tanh is 1, may still make a finite step.
    kept = [lane, 690] if level != "baseline" or math.isnan(value) else [690]
    assert slot.param[lane].isfinite()
    assert torch.equal(slot.param[kept], param[kept])
    torch.testing.assert_close(
        slot.state["cell"][:, kept], cell[:, kept], rtol=0, atol=0, equal_nan=True
    )
    moving = torch.ones(700, dtype=torch.bool)
    moving[[lane, 690]] = False
    assert (slot.param != param)[moving].all()
    assert slot.param[moving].isfinite().all()
    assert slot.state["cell"][:, moving].isfinite().all()


@pytest.mark.parametrize("size", [1e-30, 1e30, 1e38])
def test_gradients_of_any_size_are_moved(level: str, size: float):
    rule = RULES[0]
    weights = drawn(rule)
    batch = make(rule, weights, [(64,)])
    slot = batch.slots[0]
    slot.grad.sign_().mul_(size)
    before, (step, _) = slot.param.clone(), exactly(rule, weights, slot)
    Cpu().move(batch, torch.zeros(0, 1), None)
    torch.testing.assert_close(slot.param.double() - before, step, atol=2e-3, rtol=0)


@pytest.mark.parametrize("scale", [30.0, 1e4, 0.0])
def test_weights_that_16_bits_do_not_hold_are_multiplied_in_float32(level: str, scale: float):
    rule = RULES[1]
    weights = drawn(rule, scale)
    batch = make(rule, weights, [(500,)])
    before, (step, _) = batch.slots[0].param.clone(), exactly(rule, weights, batch.slots[0])
    Cpu().move(batch, torch.zeros(0, 1), None)
    error = (batch.slots[0].param.double() - before - step).abs()
    # At a slope of 30 and more, a rounding of h by 1e-4 is a visible change of what follows.
    assert error.mean() < 1e-3 * max(step.std().item(), 0.1)


@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-20, 1e20])
def test_a_head_may_have_any_size(level: str, size: float):
    rule = RULES[1]
    weights = drawn(rule)
    weights["head.w"] = weights["head.w"] * size
    batch = make(rule, weights, [(64,)])
    slot = batch.slots[0]
    slot.param.zero_()
    step, _ = exactly(rule, weights, slot)
    Cpu().move(batch, torch.zeros(0, 1), None)
    spread = max(step.std().item(), step.abs().mean().item())
    torch.testing.assert_close(slot.param.double(), step, atol=5e-3 * spread, rtol=1e-6)


def assert_nothing_moves(rule: L2L, weights: Weights) -> None:
    batch = make(rule, weights, [(64,)])
    slot = batch.slots[0]
    param, cell = slot.param.clone(), slot.state["cell"].clone()
    Cpu().move(batch, torch.zeros(0, 1), None)
    assert torch.equal(slot.param, param)
    assert torch.equal(slot.state["cell"], cell)


@pytest.mark.parametrize(
    ("key", "value"), [("head.w", math.inf), ("head.w", math.nan), ("head.b", math.inf)]
)
def test_a_head_that_is_not_finite_moves_nothing(level: str, key: str, value: float):
    rule = RULES[1]
    weights = drawn(rule)
    weights[key] = torch.full_like(weights[key], value)
    assert_nothing_moves(rule, weights)


def test_a_step_too_large_for_float32_is_not_taken(level: str):
    rule = L2L(layers=1, hidden=8, scale=1e3, state="float16")
    weights = drawn(rule)
    weights["head.b"] = torch.full_like(weights["head.b"], 1e37)
    assert_nothing_moves(rule, weights)


def test_the_option_halves_the_memory_and_changes_the_config_alone():
    full, half = load_rule("l2l-mnist"), with_half_state("l2l-mnist")
    assert half.sha256 == full.sha256
    assert "state" not in full.rule.config()
    assert half.rule.config() == full.rule.config() | {"state": "float16"}
    assert with_half_state(half) is half
    for rule, dtype in ((full, torch.float32), (half, torch.float16)):
        layer = nn.Linear(5, 3)
        optimizer = LearnedOptimizer(layer.parameters(), rule)
        layer(torch.ones(5)).sum().backward()
        optimizer.step()
        assert {state["cell"].dtype for state in optimizer.state.values()} == {dtype}
        again = LearnedOptimizer(layer.parameters(), rule)
        again.load_state_dict(optimizer.state_dict())
        assert again.state[layer.weight]["cell"].dtype == dtype


def test_rules_of_two_parts_have_the_option_too():
    half = with_half_state("l2l-cifar")
    assert isinstance(half.rule, ByLayer)
    assert half.rule.part.state == "float16"
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 3))
    optimizer = LearnedOptimizer(model.parameters(), half)
    model(torch.ones(2, 1, 3, 3)).sum().backward()
    optimizer.step()
    assert {state["cell"].dtype for state in optimizer.state.values()} == {torch.float16}


def test_a_checkpoint_goes_over_to_the_other_precision():
    layer = nn.Linear(5, 3)
    optimizer = LearnedOptimizer(layer.parameters(), "l2l-mnist")
    layer(torch.ones(5)).sum().backward()
    optimizer.step()
    half = LearnedOptimizer(layer.parameters(), with_half_state("l2l-mnist"))
    half.load_state_dict(optimizer.state_dict())
    cell = half.state[layer.weight]["cell"]
    assert torch.equal(cell, optimizer.state[layer.weight]["cell"].half())


def test_a_memory_may_be_as_large_as_float16_holds(level: str):
    rule = RULES[1]
    weights = drawn(rule)
    batch = make(rule, weights, [(64,)])
    slot = batch.slots[0]
    slot.state["cell"][8:] = torch.tensor([65504.0, -65504.0]).half().repeat(32)
    _, state = exactly(rule, weights, slot)
    Cpu().move(batch, torch.zeros(0, 1), None)
    assert slot.state["cell"].isfinite().all()
    torch.testing.assert_close(slot.state["cell"].double(), state, atol=1e-3, rtol=2e-3)


def test_training_ends_where_it_does_in_float32(level: str):
    def trained(rule: LoadedRule) -> float:
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(2000, 20, generator=rng)
        labels = (x[:, :4] + torch.randn(2000, 4, generator=rng)).argmax(1)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 24), nn.Sigmoid(), nn.Linear(24, 4))
        optimizer = LearnedOptimizer(model.parameters(), rule)
        loss = torch.tensor(math.inf)
        for _ in range(100):
            loss = nn.functional.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    full, half = trained(load_rule("l2l-mnist")), trained(with_half_state("l2l-mnist"))
    assert full < 0.9
    # Single runs part by 1 % at the median: benchmarks/half_state.py has many.
    assert half == pytest.approx(full, rel=0.05)


def test_the_benchmark_compares_what_it_says(
    built_kernels: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LEARNED_OPTIM_ISA", native.LEVELS[native.best_level()])
    trial = half_state.Trial("tiny", "l2l-quadratic", Quadratic(), steps=40, runs=4, block=2)
    path = tmp_path / "half_state.json"
    half_state.measure(path, [trial])
    (found,) = json.loads(path.read_text())["half_state"]
    assert os.environ["LEARNED_OPTIM_ISA"] == native.LEVELS[native.best_level()]
    assert {name: len(ends) for name, ends in found["ends"].items()} == {
        half_state.FULL: 4,
        half_state.OTHER: 4,
        half_state.HALF: 4,
    } | ({half_state.NARROW: 4} if native.LEVELS[native.best_level()] == "avx512" else {})
    # By rounding, and no more than that: it is the same runs that are compared.
    assert found["ends"][half_state.HALF] != found["ends"][half_state.FULL]
    assert 0 < found["against"][half_state.HALF]["part_by"] < 0.2
    other = found["against"][half_state.OTHER]["part_by"]
    assert other < 0.01
    assert (other > 0) == (native.best_level() > 0)
    assert readme_tables.half_state({"half_state": [found]}).count("\n") == 2
    half_state.draw({"half_state": [found]}, tmp_path / "half_state.png")
    assert (tmp_path / "half_state.png").stat().st_size > 5000


def test_a_rule_of_another_kind_says_so():
    with pytest.raises(ValueError, match="'default'"):
        with_half_state("default")
    with pytest.raises(ValueError, match="state must be one of"):
        dataclasses.replace(RULES[0], state="float8")  # type: ignore[arg-type]
