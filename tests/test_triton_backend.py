"""The Triton backend against the eager reference in float64.

On a machine with a GPU its kernels run there; without one they run in Triton's interpreter, and
what the compiler makes of them is checked in `test_triton_compile.py`.

Expected rounding: activations are good to 5e-7, so float32 state and steps of size 1 agree to about
2e-6 after a step; half precision rounds to a neighbour, and the interpreter cuts bfloat16 off
where a GPU rounds, so one unit in the last place.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from backend_batches import SIZES, make, moved_to, step_, worst
from interpreted import DEVICE, why_not
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from learned_optim.backends import Batch, Eager
from learned_optim.rules import L2L, ByLayer, Default
from learned_optim.weights import bundled_names, load_bundled

if (_reason := why_not()) is not None:
    pytest.skip(_reason, allow_module_level=True)

from learned_optim.backends.triton import Triton, constants, launch

FEW = [(), (3,), (65,), (5, 13)]
L2LS = [
    L2L(),
    L2L(hidden=5),
    L2L(layers=1),
    L2L(layers=1, hidden=8),
    L2L(layers=1, hidden=8, state="float16"),
    L2L(layers=1, hidden=4, preprocess="none"),
    L2L(layers=1, hidden=3),
    L2L(layers=1, hidden=1),
]
DEFAULTS = [Default(matrix=False), Default(hidden=8), Default(hidden=3), Default(hidden=0)]
ONE_EACH = [L2L(), L2L(layers=1, hidden=4), Default()]


def wanted(batch: Batch, finite=None, steps: int = 1) -> Batch:
    """What the reference makes of it in float64."""
    exact = moved_to(batch, torch.device("cpu"), torch.float64)
    for _ in range(steps):
        step_(Eager(), exact, None if finite is None else finite.cpu())
    return exact


def bound(key: str, batch: Batch, tolerance: float) -> float:
    """What rounding may make of an entry in one step."""
    found = (slot.state[key] for slot in batch.slots if key in slot.state)
    tensor = batch.slots[0].param if key == "param" else next(found)
    if tensor.dtype != torch.float32:
        # The interpreter cuts off where a GPU rounds.
        return max(2 * torch.finfo(tensor.dtype).eps, tolerance)
    if key == "moments":
        return 1e-5  # 1 - beta2 in float32, as the reference has it too
    if key == "param" and DEVICE.type == "cuda" and isinstance(batch.rule, Default):
        return 2e-2  # the matrix stage, which is in bfloat16 there
    return tolerance


def check(batch: Batch, finite=None, tolerance: float = 2e-6) -> Batch:
    """A step by the kernels is the reference's; returns what they made of the batch."""
    moved = step_(Triton(), moved_to(batch, DEVICE), finite)
    for key, apart in worst(moved, wanted(batch, finite)).items():
        assert apart <= bound(key, moved, tolerance), f"{key}: {apart}"
    return moved


@pytest.mark.parametrize("rule", [*L2LS, *DEFAULTS], ids=str)
def test_one_step_equals_the_reference_in_float64(rule):
    sizes = SIZES if rule in ONE_EACH else FEW
    moved = check(make(rule, sizes, decay=0.01))
    assert any(slot.param.any() for slot in moved.slots)


@pytest.mark.parametrize("rule", ONE_EACH, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_parameters_and_gradients(rule, dtype):
    moved = check(make(rule, FEW, dtype=dtype))
    assert {slot.param.dtype for slot in moved.slots} == {dtype}


@pytest.mark.parametrize("rule", ONE_EACH[1:], ids=str)
@pytest.mark.parametrize(
    "options",
    [{"maximize": True, "decay": 0.3}, {"lr": torch.tensor(0.3)}, {"total_steps": 30}],
    ids=str,
)
def test_the_groups_settings_are_followed(rule, options):
    check(make(rule, FEW, **options))


def test_with_lr_zero_only_the_state_moves():
    batch = make(ONE_EACH[1], FEW, lr=0.0)
    moved = check(batch)
    for ours, before in zip(moved.slots, batch.slots, strict=True):
        assert torch.equal(ours.param.cpu(), before.param)


@pytest.mark.parametrize("rule", [ONE_EACH[1], ONE_EACH[2]], ids=str)
def test_tensors_of_many_blocks(rule):
    block = constants.MULTIPLIED_OUT.block
    check(make(rule, [(2 * block + 1,), (7,), (block,), (3, block)]))


@pytest.mark.parametrize("rule", ONE_EACH, ids=str)
def test_a_masked_tensor_keeps_everything_and_its_neighbours_move(rule):
    batch = make(rule, [(70,), (5, 13), (6, 11), (4,)], decay=0.1)
    batch.slots[1].grad[2, 3] = math.nan
    batch.slots[3].grad[0] = -math.inf
    before = copy.deepcopy(batch.slots[1])
    finite = torch.tensor([True, False, True, False], device=DEVICE)
    moved = check(batch, finite)
    slot = moved.slots[1]
    assert torch.equal(slot.param.cpu(), before.param)
    for key, value in before.state.items():
        assert torch.equal(slot.state[key].cpu(), value), key
    assert not torch.equal(moved.slots[2].param.cpu(), batch.slots[2].param)


@pytest.mark.parametrize("rule", ONE_EACH[:2], ids=str)
def test_a_coordinate_without_a_finite_step_stays_where_it_is(rule):
    batch = make(rule, [(9,)])
    batch.slots[0].state["cell"][-1, 4] = math.nan
    moved = check(batch)
    assert moved.slots[0].param[4].cpu() == batch.slots[0].param[4]
    assert (moved.slots[0].param.cpu() != batch.slots[0].param).sum() == 8


@pytest.mark.parametrize("rule", [ONE_EACH[1], Default(matrix=False)], ids=str)
def test_a_survey_finds_broken_gradients_and_adds_up(rule):
    sizes = [(0,), (), (3,), (5, 13), (launch.SURVEY_BLOCK + 5,), (2 * launch.SURVEY_BLOCK,)]
    batch = make(rule, sizes, maximize=True)
    batch.slots[1].grad.fill_(math.inf)
    batch.slots[3].grad[4, 12] = math.nan
    batch.slots[4].grad[-1] = -math.inf
    rows = Triton().survey(moved_to(batch, DEVICE)).cpu()
    assert rows[:, 0].tolist() == [0, 1, 0, 1, 1, 0]
    exact = Eager().survey(moved_to(batch, torch.device("cpu"), torch.float64)).float()
    good = exact[:, 0] == 0
    torch.testing.assert_close(rows[good], exact[good], rtol=1e-5, atol=1e-6)
    again = Triton().survey(moved_to(batch, DEVICE)).cpu()
    assert torch.equal(rows[good], again[good])


def test_largest_half_precision_numbers_are_not_broken():
    batch = make(ONE_EACH[1], [(3,)], dtype=torch.float16)
    batch.slots[0].grad[:] = torch.finfo(torch.float16).max
    assert not Triton().broken(moved_to(batch, DEVICE)).any()
    assert Triton().sums(moved_to(batch, DEVICE)).shape == (1, 0)


@pytest.mark.parametrize("rule", [ONE_EACH[1], ONE_EACH[2]], ids=str)
def test_transposed_and_strided_tensors(rule):
    def stretched(batch: Batch) -> Batch:
        first, second, third = batch.slots
        first.param = first.param.t().contiguous().t()
        second.grad = second.grad.repeat_interleave(2, dim=1)[:, ::2]
        third.param = third.param.repeat_interleave(2, dim=0)[::2]
        key = batch.rule.keys_per("coordinate")[0]
        third.state[key] = third.state[key].mT.contiguous().mT
        return batch

    batch = make(rule, [(6, 8), (6, 8), (6, 8)])
    plain = step_(Triton(), moved_to(batch, DEVICE))
    moved = step_(Triton(), stretched(moved_to(batch, DEVICE)))
    assert moved.slots[0].param.stride() == (1, 6)
    assert moved.slots[2].param.stride() == (16, 1)
    assert worst(moved, plain) == dict.fromkeys(worst(plain, plain), 0.0)


def test_addresses_that_allow_no_wide_loads():
    batch = make(ONE_EACH[1], [(64,), (64,)])
    wanted_slots = wanted(batch).slots
    moved = moved_to(batch, DEVICE)
    for slot in moved.slots[:1]:
        shifted = torch.zeros(65, device=DEVICE)
        slot.param = shifted[1:].copy_(slot.param)
        assert slot.param.data_ptr() % launch.ALIGNMENT
    step_(Triton(), moved)
    for ours, theirs in zip(moved.slots, wanted_slots, strict=True):
        torch.testing.assert_close(ours.param.cpu().double(), theirs.param, atol=2e-6, rtol=0)


def trained():
    """Rules and weights that come with the package; of a rule of two parts, which this backend
    leaves to others, each part by itself."""
    for name in bundled_names():
        rule, weights = load_bundled(name).rule, dict(load_bundled(name).weights)
        if isinstance(rule, ByLayer):
            for part, own in rule.split(weights).items():
                yield pytest.param(rule.part, own, id=f"{name}-{part}")
        else:
            yield pytest.param(rule, weights, id=name)


@pytest.mark.parametrize(("rule", "weights"), list(trained()))
def test_trained_weights_over_many_steps(rule, weights):
    # A thousand on a GPU; the interpreter takes tens of milliseconds a step.
    steps = 1000 if DEVICE.type == "cuda" else 25
    batch = make(rule, [(5, 2)], weights=weights, lr=1.0)
    for value in batch.slots[0].state.values():
        value.zero_()
    ours, theirs = moved_to(batch, DEVICE), moved_to(batch, torch.device("cpu"), torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        grad = torch.randn(5, 2, generator=generator)
        ours.slots[0].grad, theirs.slots[0].grad = grad.to(DEVICE), grad.double()
        step_(Triton(), ours)
        step_(Eager(), theirs)
    tolerance = 2e-2 if isinstance(rule, Default) and DEVICE.type == "cuda" else 1e-3
    for key, apart in worst(ours, theirs).items():
        assert apart < tolerance, key


def test_the_host_reads_nothing_back():
    class NoReads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert "_local_scalar_dense" not in str(func)
            assert "nonzero" not in str(func)
            return func(*args, **(kwargs or {}))

    # Without matrices: on the CPU torch's part of the last stage may look.
    batch = moved_to(make(DEFAULTS[0], FEW, lr=torch.tensor(0.5)), DEVICE)
    finite = torch.ones(len(FEW), dtype=torch.bool, device=DEVICE)
    with NoReads():
        step_(Triton(), batch, finite)


def test_autograd_notices_that_the_parameter_changed():
    batch = moved_to(make(ONE_EACH[1], [(4,)]), DEVICE)
    param = batch.slots[0].param.requires_grad_()
    loss = (param * param).sum()
    with torch.no_grad():
        step_(Triton(), batch)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_it_cannot_read_goes_to_the_reference(monkeypatch):
    moved = []
    monkeypatch.setattr(Eager, "move", lambda self, batch, *_: moved.append(batch))
    fake, mixed = make(ONE_EACH[1], [(4,)]), make(ONE_EACH[1], [(4,), (4,)])
    with FakeTensorMode() as mode:
        fake.slots[0].param = mode.from_tensor(fake.slots[0].param)
    mixed.slots[0].grad = mixed.slots[0].grad.half()
    for batch in (fake, mixed):
        Triton().move(batch, torch.zeros(0, len(batch.slots)), None)
    assert moved == [fake, mixed]
