"""The C++ backend against the eager reference.

Expected rounding: the kernel's activations differ by 4e-7, so float32 steps of size 0.1 differ by
about 1e-7 a step; bfloat16 and float16 parameters may round to the neighbour: one unit in the
last place, seldom.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from learned_optim import kernels
from learned_optim.backends import Backend, Batch, Eager, PlannedL2L, Slot, choose
from learned_optim.backends.cpu import Cpu
from learned_optim.cells import CELLS
from learned_optim.kernels import native
from learned_optim.rules import L2L, Adam, LearnableSGD
from learned_optim.weights import bundled_names, load_bundled

CPU = torch.device("cpu")
SIZES = [(0,), (), (1,), (3,), (63,), (64,), (65,), (5, 13), (2, 0, 3), (511,), (512,), (2049,)]
RULES = [L2L(), L2L(layers=1, hidden=8), L2L(layers=1, hidden=4, preprocess="none"), L2L(hidden=5)]
# Odd sizes, so that units are left over whatever number shares the registers.
OTHER_CELLS = [
    L2L(cell=cell, layers=layers, hidden=hidden)
    for cell in CELLS
    if cell != "lstm"
    for layers, hidden in ((2, 20), (1, 9))
]


pytestmark = pytest.mark.usefixtures("built_kernels")


def make(rule, sizes=SIZES, dtype=torch.float32, weights=None, **options) -> Batch:
    generator = torch.Generator().manual_seed(5)
    slots = []
    for shape in sizes:
        param, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        state = {"cell": torch.zeros(rule.state_spec["cell"].rows, *shape)}
        state["cell"].copy_(0.1 * torch.randn(state["cell"].shape, generator=generator))
        slots.append(Slot(param, grad, state, torch.tensor(0.0), shape))
    weights = weights or rule.init_weights(generator)
    settings = {"lr": 0.7, "decay": 0.0, "maximize": False, "total_steps": None} | options
    return Batch(rule, weights, slots, device=CPU, compute_dtype=torch.float32, **settings)


def move(backend: Backend, batch: Batch, finite=None) -> Batch:
    moved = copy.deepcopy(batch)
    backend.move(moved, torch.zeros(0, len(batch.slots)), finite)
    return moved


def assert_alike(got: Batch, wanted: Batch, tolerance=1e-6):
    for ours, theirs in zip(got.slots, wanted.slots, strict=True):
        ulp = torch.finfo(ours.param.dtype).eps
        atol, rtol = (tolerance, 0.0) if ours.param.dtype == torch.float32 else (0.0, 2 * ulp)
        torch.testing.assert_close(ours.param, theirs.param, atol=atol, rtol=rtol, equal_nan=True)
        for key, value in theirs.state.items():
            torch.testing.assert_close(
                ours.state[key], value, atol=tolerance, rtol=0, equal_nan=True
            )


@pytest.mark.parametrize("rule", [*RULES, *OTHER_CELLS], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_step_equals_eager(level, rule, dtype):
    batch = make(rule, dtype=dtype, decay=0.01)
    assert_alike(move(Cpu(), batch), move(Eager(), batch))


@pytest.mark.parametrize("options", [{"maximize": True}, {"lr": torch.tensor(0.3)}, {"lr": 0.0}])
def test_the_groups_settings_are_followed(options):
    batch = make(RULES[1], **options)
    moved = move(Cpu(), batch)
    assert_alike(moved, move(Eager(), batch))
    assert torch.equal(moved.slots[-1].param, batch.slots[-1].param) == (options.get("lr") == 0.0)


def test_a_large_odd_tensor_equals_eager():
    batch = make(RULES[2], [(1_000_001,)])
    assert_alike(move(Cpu(), batch), move(Eager(), batch))


def rules_with_weights():
    """The bundled rules that the backend serves, and each cell with random weights."""
    loaded = [load_bundled(name) for name in bundled_names()]
    served = [(x.name, x.rule, x.weights) for x in loaded if type(x.rule) is L2L]
    drawn = [L2L(cell=cell) for cell in CELLS]
    return served + [
        (f"random {rule.cell}", rule, rule.init_weights(torch.Generator().manual_seed(0)))
        for rule in drawn
    ]


@pytest.mark.parametrize(("name", "rule", "weights"), rules_with_weights())
def test_a_thousand_steps_stay_beside_eager(name, rule, weights):
    ours = make(rule, [(37,)], weights=weights, lr=1.0)
    theirs, signals = copy.deepcopy(ours), torch.zeros(0, 1)
    cpu, eager = Cpu(), Eager()
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        # The same gradients for both: a trained rule on its own gradients may be chaotic, and then
        # any rounding grows to the size of the loss. What the state remembers is compared.
        grad = torch.randn(37, generator=generator) * 10 ** (
            6 * torch.rand(37, generator=generator) - 5
        )
        for batch, backend in ((ours, cpu), (theirs, eager)):
            batch.slots[0].grad = grad
            backend.move(batch, signals, None)
    assert_alike(ours, theirs, tolerance=1e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_coordinate_whose_step_is_not_finite_keeps_parameter_and_state(level, value):
    batch = make(RULES[1], [(700,)])
    batch.slots[0].grad[600] = math.nan
    batch.slots[0].state["cell"][3, 40] = value
    moved = move(Cpu(), batch)
    assert_alike(moved, move(Eager(), batch))
    assert moved.slots[0].param[600] == batch.slots[0].param[600]
    assert torch.equal(moved.slots[0].state["cell"][:, 600], batch.slots[0].state["cell"][:, 600])
    assert moved.slots[0].param[601] != batch.slots[0].param[601]


def test_a_tensor_that_sits_out_is_untouched():
    batch = make(RULES[0], [(5,), (6,), (7,)])
    finite = torch.tensor([True, False, True])
    moved = move(Cpu(), batch, finite)
    assert_alike(moved, move(Eager(), batch, finite))
    assert torch.equal(moved.slots[1].param, batch.slots[1].param)
    nobody = move(Cpu(), batch, torch.zeros(3, dtype=torch.bool))
    assert torch.equal(nobody.slots[0].param, batch.slots[0].param)


def test_transposed_and_strided_tensors_equal_eager():
    batch = make(RULES[1], [(6, 8), (6, 8), (6, 8)])
    batch.slots[0].param = batch.slots[0].param.t().contiguous().t()
    batch.slots[1].grad = torch.randn(12, 16)[::2, ::2]
    batch.slots[2].param = torch.randn(12, 8)[::2]
    ours, theirs = (copy.deepcopy(batch) for _ in range(2))
    Cpu().move(ours, torch.zeros(0, 3), None)
    Eager().move(theirs, torch.zeros(0, 3), None)
    assert_alike(ours, theirs)
    assert ours.slots[0].param.stride() == (1, 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_state_in_half_precision_is_rounded_as_torch_rounds(level, dtype):
    # An odd number of units, as pairs of them may be computed in 16 bits: see test_half_state.py.
    rule, generator = L2L(layers=1, hidden=9), torch.Generator().manual_seed(1)
    batch = make(rule, [(1000,)])
    flat = torch.cat([batch.weights[name].reshape(-1) for name in rule.weight_shapes()])
    state = torch.randn(18, 1000, generator=generator).to(dtype)
    # Numbers that float16 holds without a leading one, or not at all.
    state[:, :100] *= 1e-6
    state[9:, 100:200] = torch.randn(9, 100, generator=generator).to(dtype) * 1000
    param, grad, wide = torch.zeros(1000), batch.slots[0].grad, state.float()
    sizes = {"layers": 1, "hidden": 9, "p": 10.0}
    step = kernels.cells_step_(grad, wide, flat, **sizes)
    kernels.cells_update_([param], [grad], [state], flat, **sizes)
    torch.testing.assert_close(param, step, atol=1e-6, rtol=0)
    torch.testing.assert_close(state, wide.to(dtype), atol=6e-8, rtol=torch.finfo(dtype).eps)
    assert (state == wide.to(dtype)).float().mean() > 0.999


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_ties_round_to_the_even_neighbour(level, dtype):
    rule, eps = RULES[1], torch.finfo(dtype).eps
    param = torch.tensor([1.0, -1.0, 1.0 + eps, 2.0, 0.5 + 1.5 * eps, 0.0]).to(dtype)
    keep = 1.0 + eps / 2
    expected = (param.float() * keep).to(dtype)
    assert torch.equal(expected[:2], param[:2])
    flat = torch.zeros(kernels.weight_count(1, 8, 2))
    state = torch.zeros(rule.state_spec["cell"].rows, 6)
    kernels.cells_update_(
        [param], [param.clone()], [state], flat, layers=1, hidden=8, p=10.0, keep=keep
    )
    assert torch.equal(param, expected)


def test_threads_do_not_change_a_bit():
    batch = make(RULES[0], [(9000,), (10,), (3000,)])
    one = move(Cpu(), batch)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        three = move(Cpu(), batch)
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(one.slots, three.slots, strict=True):
        assert torch.equal(ours.param, theirs.param)
        assert torch.equal(ours.state["cell"], theirs.state["cell"])


def test_autograd_notices_that_the_parameter_changed():
    batch = make(RULES[1], [(4,)])
    param = batch.slots[0].param.requires_grad_()
    loss = (param * param).sum()
    with torch.no_grad():
        Cpu().move(batch, torch.zeros(0, 1), None)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tensors_without_memory_go_to_the_reference(monkeypatch):
    moved = []
    monkeypatch.setattr(Eager, "move", lambda self, batch, *_: moved.append(batch))
    batch = make(RULES[1], [(4,)])
    with FakeTensorMode() as mode:
        batch.slots[0].param = mode.from_tensor(batch.slots[0].param)
    Cpu().move(batch, torch.zeros(0, 1), None)
    assert moved == [batch]


def test_memory_of_a_step_does_not_grow_with_the_tensor():
    batch = make(RULES[2], [(300_000,)])
    with torch.profiler.profile(profile_memory=True) as profile:
        Cpu().move(batch, torch.zeros(0, 1), None)
    assert sum(max(event.self_cpu_memory_usage, 0) for event in profile.events() or []) < 100_000


def test_choose_takes_it_where_it_can():
    assert choose(L2L(), CPU, torch.float32, None) is Cpu
    assert choose(L2L(), CPU, torch.bfloat16, True) is Cpu
    assert choose(L2L(), CPU, torch.float32, False) is PlannedL2L
    others = (LearnableSGD(), torch.float32, Eager), (L2L(), torch.float64, PlannedL2L)
    for rule, dtype, kind in others:
        assert choose(rule, CPU, dtype, None) is kind
        with pytest.raises(RuntimeError, match="cpu: it"):
            choose(rule, CPU, dtype, True)
    assert choose(Adam(), CPU, torch.float32, None) is Eager


def test_fused_without_the_library_explains_what_to_do(monkeypatch):
    monkeypatch.setattr(native, "_load", lambda: "run python -m learned_optim.kernels.build")
    with pytest.raises(RuntimeError, match=r"learned_optim\.kernels\.build"):
        choose(L2L(), CPU, torch.float32, True)
    assert choose(L2L(), CPU, torch.float32, None) is PlannedL2L


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": [torch.zeros(5, dtype=torch.float64)]}, "params must be one of"),
        ({"params": [torch.zeros(10)[::2]]}, "all of params must be contiguous"),
        ({"grads": [torch.zeros(4)]}, r"grads\[0\] must have 5 elements but has 4"),
        ({"states": [torch.zeros(3, 5)]}, r"states\[0\] must have 40 elements but has 15"),
        ({"weights": torch.zeros(3)}, "weights must have shape"),
    ],
)
def test_wrong_tensors_are_refused(change, message):
    arguments = {
        "params": [torch.zeros(5)],
        "grads": [torch.zeros(5)],
        "states": [torch.zeros(8, 5)],
        "weights": torch.zeros(kernels.weight_count(1, 4, 2)),
    }
    with pytest.raises(ValueError, match=message):
        kernels.cells_update_(**(arguments | change), layers=1, hidden=4, p=10.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_tensors_with_nan_or_infinity_are_found(level, dtype):
    batch = make(RULES[1], [(0,), (), (3,), (65,), (5, 13), (70_000,), (130_000,)], dtype=dtype)
    grads = [slot.grad for slot in batch.slots]
    assert not Cpu().broken(batch).any()
    grads[1].fill_(math.nan)
    grads[3][64] = math.inf
    grads[4][0, 0] = torch.finfo(dtype).max
    grads[6][129_999] = -math.inf
    assert Cpu().broken(batch).flatten().tolist() == [0, 1, 0, 1, 0, 0, 1]
    assert torch.equal(Cpu().broken(batch), Eager().broken(batch))
    batch.slots[3].grad = grads[3].flip(0)[::2]
    assert Cpu().broken(batch).flatten().tolist() == [0, 1, 0, 1, 0, 0, 1]


def test_threads_find_what_one_finds():
    grads = [torch.zeros(n) for n in (1_200_000, 5, 300_000)]
    grads[2][-1] = math.nan
    for threads in (1, 3):
        assert kernels.not_finite(grads, threads=threads).tolist() == [False, False, True]
