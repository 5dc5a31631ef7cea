"""Cells in planned memory against the pure ones, and their backend against the reference.

Expected rounding: the same operations in another order. Products that begin with another term, and
a factor of -2 that is exact: 1e-6 for float32 states below 1, 1e-13 for float64.
"""

from __future__ import annotations

import copy
import math

import backend_batches
import pytest
import torch
from backend_batches import SIZES, louder, step_, worst
from torch import Tensor

from learned_optim import LearnedOptimizer
from learned_optim.backends import Batch, Cpu, Eager, PlannedL2L, choose, planned_l2l
from learned_optim.cells import lstm
from learned_optim.kernels import native
from learned_optim.planned import PlannedLstms, memory_rows
from learned_optim.rules import L2L, Adam, Default, UpdateRule
from learned_optim.weights import bundled_names, in_memory, load_bundled

CPU = torch.device("cpu")
RULES = [
    L2L(),
    L2L(layers=1, hidden=8),
    L2L(layers=1, hidden=1, preprocess="none"),
    L2L(layers=3, hidden=5, state="float16"),
]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}


def make(
    rule: UpdateRule, sizes=SIZES, compute: torch.dtype = torch.float32, **options: object
) -> Batch:
    return backend_batches.make(rule, sizes, compute=compute, **options)  # type: ignore[arg-type]


def both(batch: Batch, finite: Tensor | None = None) -> tuple[Batch, Batch]:
    """Moved by cells in planned memory, and by the reference."""
    return (
        step_(PlannedL2L(), copy.deepcopy(batch), finite),
        step_(Eager(), copy.deepcopy(batch), finite),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_stack_of_planned_cells_equals_the_pure_ones(layers: int, dtype: torch.dtype):
    """For blocks of any size, one after the other in the same memory."""
    rule = L2L(layers=layers, hidden=7)
    weights = rule.init_weights(torch.Generator().manual_seed(0))
    weights = {key: value.to(dtype) for key, value in weights.items()}
    each = [rule.layer_weights(weights, layer) for layer in range(layers)]
    cells = PlannedLstms(each, 64)
    generator = torch.Generator().manual_seed(1)
    for count in (64, 1, 63, 0, 64, 5):
        x = torch.randn(2, count, generator=generator, dtype=dtype)
        state = torch.randn(14 * layers, count, generator=generator, dtype=dtype)
        before, h, rows = state.clone(), x, []
        for layer, part in enumerate(state.split(14)):
            h, new = lstm(h, part, each[layer])
            rows.append(new)
        cells.features(count).copy_(x)
        ours, moved = cells.step(state)
        torch.testing.assert_close(ours, h, atol=TOLERANCE[dtype], rtol=0)
        torch.testing.assert_close(moved, torch.cat(rows), atol=TOLERANCE[dtype], rtol=0)
        assert torch.equal(state, before)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_step_equals_the_reference(rule: L2L, dtype: torch.dtype):
    ours, theirs = both(make(rule, dtype=dtype, decay=0.01, maximize=True))
    apart = worst(ours, theirs)
    # Numbers in half precision may round to the neighbour.
    assert apart["param"] <= max(1e-6, 2 * torch.finfo(dtype).eps * (dtype != torch.float32))
    assert apart["cell"] <= (1e-6 if rule.state == "float32" else 1e-3)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_one_step_in_float64_equals_the_reference(rule: L2L):
    assert max(worst(*both(make(rule, compute=torch.float64))).values()) <= 1e-13


@pytest.mark.parametrize("rule", RULES[:2], ids=str)
def test_a_large_odd_tensor_between_small_ones_equals_the_reference(rule: L2L):
    apart = worst(*both(make(rule, [(3,), (1_000_001,), (64, 5)])))
    assert max(apart.values()) <= 1e-6


@pytest.mark.parametrize("name", [n for n in bundled_names() if n.startswith("l2l")])
def test_a_thousand_steps_of_trained_weights_stay_beside_the_reference(name: str):
    loaded = load_bundled(name)
    if type(loaded.rule) is not L2L:
        pytest.skip("served in its parts")
    ours = make(loaded.rule, [(37,)], weights=dict(loaded.weights), lr=1.0)
    theirs, generator = copy.deepcopy(ours), torch.Generator().manual_seed(0)
    backends = PlannedL2L(), Eager()
    for _ in range(1000):
        # The same gradients for both: on its own gradients a trained rule may be chaotic.
        size = 10 ** (6 * torch.rand(37, generator=generator) - 5)
        grad = size * torch.randn(37, generator=generator)
        for batch, backend in zip((ours, theirs), backends, strict=True):
            batch.slots[0].grad = grad
            step_(backend, batch)
    assert max(worst(ours, theirs).values()) <= 1e-3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_coordinate_whose_step_is_not_finite_keeps_parameter_and_state(value: float):
    batch = make(RULES[1], [(700,)])
    batch.slots[0].grad[600] = math.nan
    batch.slots[0].state["cell"][3, 40] = value
    moved, theirs = both(batch)
    assert max(worst(moved, theirs).values()) <= 1e-6
    for here in (600, 40) if math.isnan(value) else (600,):
        assert moved.slots[0].param[here] == batch.slots[0].param[here]
        kept = moved.slots[0].state["cell"][:, here], batch.slots[0].state["cell"][:, here]
        torch.testing.assert_close(*kept, equal_nan=True, atol=0, rtol=0)
    assert moved.slots[0].param[601] != batch.slots[0].param[601]


def test_a_tensor_that_sits_out_is_untouched():
    batch = make(RULES[0], [(5,), (6,), (7,)])
    moved, theirs = both(batch, torch.tensor([True, False, True]))
    assert max(worst(moved, theirs).values()) <= 1e-6
    assert torch.equal(moved.slots[1].param, batch.slots[1].param)
    assert torch.equal(moved.slots[1].state["cell"], batch.slots[1].state["cell"])


def test_strided_tensors_equal_the_reference():
    batch = make(RULES[0], [(6, 8), (6, 8), (6, 8)])
    batch.slots[0].param = batch.slots[0].param.t().contiguous().t()
    batch.slots[1].grad = torch.randn(12, 16)[::2, ::2]
    cell = batch.slots[2].state["cell"]
    batch.slots[2].state["cell"] = cell.transpose(0, 2).contiguous().transpose(0, 2)
    ours, theirs = both(batch)
    assert max(worst(ours, theirs).values()) <= 1e-6
    assert ours.slots[0].param.stride() == (1, 6)


def test_one_backend_serves_rules_of_other_sizes_weights_and_dtypes():
    """Its memory is of one rule's size; it must not be taken for another's."""
    backend = PlannedL2L()
    for rule in (*RULES, RULES[0]):
        for compute in (torch.float32, torch.float64):
            batch = make(rule, [(70,), (9,)], compute=compute)
            theirs = step_(Eager(), copy.deepcopy(batch))
            assert max(worst(step_(backend, batch), theirs).values()) <= (
                1e-6 if rule.state == "float32" or compute == torch.float64 else 1e-3
            )


@pytest.mark.parametrize(
    ("rule", "block"),
    [
        (L2L(), 4096),
        (L2L(layers=1, hidden=8), 16384),
        (L2L(layers=1, hidden=4), 16384),
        (L2L(layers=8, hidden=256), 64),
    ],
    ids=str,
)
def test_blocks_fill_the_memory_whatever_the_rule(rule: L2L, block: int):
    backend = PlannedL2L()
    assert backend.block_size(make(rule, [(3,)])) == block
    assert block * sum(memory_rows(rule.layers, rule.hidden, 2)) <= planned_l2l.MEMORY


def test_memory_of_a_step_does_not_grow_with_the_tensor():
    """What is planned is kept; beside it no temporary has more than two numbers a coordinate."""
    batch, backend = make(RULES[0], [(300_000,)]), PlannedL2L()
    step_(backend, batch)
    with torch.profiler.profile(profile_memory=True) as profile:
        step_(backend, batch)
    largest = max(event.self_cpu_memory_usage for event in profile.events() or [])
    assert 0 < largest <= 2 * 4 * backend.block_size(batch)


def test_it_is_chosen_where_torch_is_alone(monkeypatch: pytest.MonkeyPatch):
    assert choose(L2L(), CPU, torch.float32, False) is PlannedL2L
    assert choose(L2L(), CPU, torch.float64, None) is PlannedL2L
    for rule in (Adam(), Default(), L2L(cell="gru")):
        assert choose(rule, CPU, torch.float32, False) is Eager
    assert choose(L2L(), torch.device("cuda"), torch.float32, False) is Eager
    monkeypatch.setattr(native, "_load", lambda: "no compiler")
    assert choose(L2L(), CPU, torch.float32, None) is PlannedL2L
    with pytest.raises(RuntimeError, match="no compiler"):
        choose(L2L(), CPU, torch.float32, True)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_is_the_references(monkeypatch: pytest.MonkeyPatch):
    """A compiler plans memory by itself, and what is kept between calls is not its to write."""
    rule = L2L(layers=1, hidden=3)
    loaded = in_memory(rule, louder(rule.init_weights(torch.Generator().manual_seed(0))), name="x")
    params = [torch.nn.Parameter(torch.linspace(-1, 1, 9)) for _ in range(2)]
    plain, traced = (LearnedOptimizer([param], loaded, fused=False) for param in params)
    for param in params:
        param.grad = torch.linspace(-1e-2, 1e-1, 9)
    plain.step()
    monkeypatch.setattr(PlannedL2L, "update", None)
    torch.compile(traced.step, backend="aot_eager")()
    torch.testing.assert_close(params[0], params[1], atol=1e-7, rtol=0)


def test_it_is_the_kernels_step_but_for_rounding(built_kernels: None):
    batch = make(RULES[0])
    ours, kernels = step_(PlannedL2L(), copy.deepcopy(batch)), step_(Cpu(), batch)
    assert max(worst(ours, kernels).values()) <= 1e-6
