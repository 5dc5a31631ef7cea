"""`default` in planned memory against the reference.

Expected rounding: the same operations, but for sums that are dot products. Steps differ by 2e-6 of
the largest parameter, by 30 times that where the matrix stage follows, whose iterations amplify
small singular values; in float64 by 1e-12.
"""

from __future__ import annotations

import copy
import math

import backend_batches
import pytest
import torch
from backend_batches import SIZES, step_, worst
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from learned_optim import LearnedOptimizer, backends
from learned_optim.backends import Batch, Eager, PlannedDefault, blocks, choose
from learned_optim.rules import L2L, Coordinates, Default, UpdateRule
from learned_optim.rules.default import SIGNALS

CPU = torch.device("cpu")
PLAIN = Default(hidden=0, controller=0, matrix=False)
RULES = [PLAIN, Default(hidden=0, controller=3), Default(hidden=0, controller=0, basis=False)]
# Blocks are of 32768: matrices of several, of one, and many that share one.
MATRICES = [(300, 210), (40,), (150, 130), (12, 9), (12, 9), (7, 30), (33000,), (12, 9), (5, 5)]


def make(rule: Default, sizes=SIZES, compute: torch.dtype = torch.float32, **options) -> Batch:
    batch = backend_batches.make(rule, sizes, compute=compute, **options)
    for slot in batch.slots:  # as the host knows it where it waits for no device
        slot.age = int(slot.step) if rule.has_basis(slot.shape) else None
    return batch


def both(batch: Batch, finite: Tensor | None = None) -> tuple[Batch, Batch]:
    """Moved in planned memory, and by the reference."""
    return (
        step_(PlannedDefault(), copy.deepcopy(batch), finite),
        step_(Eager(), copy.deepcopy(batch), finite),
    )


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("sizes", [SIZES, MATRICES], ids=["vectors", "matrices"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_step_equals_the_reference(rule: Default, sizes, dtype: torch.dtype):
    apart = worst(*both(make(rule, sizes, dtype=dtype, decay=0.01, maximize=True)))
    loose = 6e-5 if rule.matrix else 2e-6
    # Numbers in half precision may round to the neighbour.
    assert apart["param"] <= max(loose, 2 * torch.finfo(dtype).eps * (dtype != torch.float32))
    assert apart["moments"] <= loose
    assert apart["gauge"] <= 2e-6


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("sizes", [SIZES, MATRICES], ids=["vectors", "matrices"])
def test_one_step_in_float64_equals_the_reference(rule: Default, sizes):
    assert max(worst(*both(make(rule, sizes, torch.float64, total_steps=30))).values()) <= 1e-12


def test_a_large_odd_tensor_between_small_ones_equals_the_reference():
    apart = worst(*both(make(PLAIN, [(3,), (1_000_001,), (64, 5)])))
    assert max(apart.values()) <= 2e-6


def test_a_training_in_float64_stays_beside_the_reference(monkeypatch: pytest.MonkeyPatch):
    """Bases that turn, matrices with and without them, and a bias; the same gradients for both."""
    shapes = [(24, 24), (24,), (200, 40), (10, 24), (10,)]

    def trained() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
        optimizer = LearnedOptimizer(params, total_steps=60)
        for _ in range(60):
            for param in params:
                noise = torch.randn(param.shape, generator=generator, dtype=torch.float64)
                param.grad = noise.add_(1)
            optimizer.step()
        return params

    assert choose(Default(hidden=0, controller=0), CPU, torch.float64, None) is PlannedDefault
    ours = trained()
    monkeypatch.setattr(backends, "PLANNED", ())
    for mine, theirs in zip(ours, trained(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("others", [[], [(5,)]], ids=["alone", "in a block of several"])
def test_a_coordinate_whose_step_is_not_finite_keeps_parameter_and_state(value: float, others):
    batch = make(PLAIN, [(700,), *others])
    batch.slots[0].state["moments"][0, 600] = value
    moved, theirs = both(batch)
    assert max(worst(moved, theirs).values()) <= 2e-6
    before, after = batch.slots[0], moved.slots[0]
    if math.isnan(value):
        assert after.param[600] == before.param[600]
        torch.testing.assert_close(
            after.state["moments"][:, 600], before.state["moments"][:, 600], equal_nan=True
        )


def test_a_tensor_that_sits_out_is_untouched():
    batch = make(RULES[2], [(5,), (6, 7), (40000,)])
    finite = torch.tensor([True, False, False])
    moved, theirs = both(batch, finite)
    assert max(worst(moved, theirs).values()) <= 6e-5
    for index in (1, 2):
        assert torch.equal(moved.slots[index].param, batch.slots[index].param)
        moments = (b.slots[index].state["moments"] for b in (moved, batch))
        assert torch.equal(*moments)


def test_strided_tensors_equal_the_reference():
    batch = make(PLAIN, [(6, 8), (6, 8), (300, 200)])
    batch.slots[0].param = batch.slots[0].param.t().contiguous().t()
    batch.slots[1].grad = torch.randn(12, 16)[::2, ::2]
    batch.slots[2].param = batch.slots[2].param.t().contiguous().t()
    ours, theirs = both(batch)
    assert max(worst(ours, theirs).values()) <= 2e-6
    assert ours.slots[2].param.stride() == (1, 300)


def test_small_tensors_have_the_sums_that_each_has_by_itself():
    sizes = [(64,), (3,), (8, 8), (64,), (0,), (), (3,), (33000,)]
    batch = make(PLAIN, sizes, compute=torch.float64)
    for backend in (PlannedDefault(), Eager()):
        together = backend.sums(batch)
        for index, slot in enumerate(batch.slots):
            alone = copy.copy(batch)
            alone.slots = [slot]
            torch.testing.assert_close(together[index], backend.sums(alone)[0])


def test_it_is_chosen_where_torch_is_alone():
    assert choose(PLAIN, CPU, torch.float32, False) is PlannedDefault
    for rule in (Default(), L2L(cell="gru")):
        assert choose(rule, CPU, torch.float32, False) is Eager
    assert choose(PLAIN, torch.device("cuda"), torch.float32, False) is Eager


def test_memory_of_a_step_does_not_grow_with_the_tensor():
    batch, backend = make(PLAIN, [(300_000,)]), PlannedDefault()
    step_(backend, batch)
    with torch.profiler.profile(profile_memory=True) as profile:
        step_(backend, batch)
    largest = max(event.self_cpu_memory_usage for event in profile.events() or [])
    assert 0 < largest <= 4 * backend.block_size(batch)


def tensors_of(block: list[blocks.Piece]) -> list[tuple[int, int, int]]:
    return [(piece.slot, piece.start, piece.stop) for piece in block]


def test_large_tensors_have_blocks_of_their_own_and_small_ones_share():
    lengths = [100, 3, 0, 250, 4, 20, 25, 25, 25, 24, 26]
    found = [*map(tensors_of, blocks.stream(lengths, [False] * 11, 100))]
    assert found == [
        [(0, 0, 100)],
        [(3, 0, 100)],
        [(3, 100, 200)],
        [(3, 200, 250)],
        [(1, 0, 3), (4, 0, 4), (5, 0, 20), (6, 0, 25), (7, 0, 25)],
        [(10, 0, 26)],
        [(8, 0, 25), (9, 0, 24)],
    ]


def test_tensors_whose_steps_wait_keep_their_order():
    """A large one would otherwise wait in memory for the small ones before it."""
    lengths, waits = [4, 50, 5, 60, 6, 70], [False, True, True, True, False, False]
    found = [block[0].slot for block in blocks.stream(lengths, waits, 100)]
    assert found == [1, 0, 3, 5, 4]


def test_a_step_outlives_the_next_block():
    """It may wait for the matrix stage, while the memory is in use again."""
    batch, backend = make(PLAIN, [(9,), (9,)]), PlannedDefault()
    signals = backend.control(batch, backend.survey(batch), None)
    steps = []
    for index, slot in enumerate(batch.slots):
        coords = Coordinates(slot.grad, slot.param)
        step, _ = backend.update(batch, coords, slot.state, signals[:, index, None])
        steps.append((step, step.clone()))
    assert torch.equal(*steps[0])
    assert not torch.equal(steps[0][0], steps[1][0])


@pytest.mark.parametrize("rule", [PLAIN, L2L(layers=1, hidden=3)], ids=str)
def test_tensors_without_numbers_go_to_the_reference(rule: UpdateRule):
    """A trace of the step must not write into memory that is kept."""
    backend = choose(rule, CPU, torch.float32, False)()
    assert type(backend) is not Eager
    batch = backend_batches.make(rule, [(9000,), (9000,)])
    step_(backend, copy.deepcopy(batch))
    with FakeTensorMode() as mode:
        for slot in batch.slots:
            slot.param, slot.grad = map(mode.from_tensor, (slot.param, slot.grad))
            slot.plain = None if slot.plain is None else mode.from_tensor(slot.plain)
            slot.state = {key: mode.from_tensor(value) for key, value in slot.state.items()}
        batch.weights = {key: mode.from_tensor(value) for key, value in batch.weights.items()}
        signals = torch.zeros(len(SIGNALS) if rule is PLAIN else 0, 2)
        backend.sums(batch)
        backend.move(batch, signals, None)
    assert isinstance(batch.slots[0].param, FakeTensor)
