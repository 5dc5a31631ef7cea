"""Blocks, gathering and masks must not show: every step equals the rule on whole tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from learned_optim.backends import Backend, Batch, Eager, Slot, choose, eager, last_stage
from learned_optim.rules import (
    L2L,
    Adam,
    Clock,
    Coordinates,
    State,
    StateSpec,
    UpdateRule,
    Weights,
    compute_dtype,
)
from learned_optim.rules.deferral import defer

SIZES = [(0,), (), (1,), (3,), (63,), (64,), (65,), (5, 13), (2, 0, 3), (1000,)]


@dataclass(frozen=True)
class Normalised(UpdateRule):
    """Signed steps scaled by a running mean of the tensor's norm: uses all that the contract has.

    Sums, control with state of the tensor, a clock with a horizon, state in float16.
    """

    name: ClassVar[str] = "normalised"
    summary_size: ClassVar[int] = 2

    @property
    def state_spec(self) -> dict[str, StateSpec]:
        return {
            "mean": StateSpec(rows=1, dtype=torch.float16),
            "norm": StateSpec(rows=2, per="tensor"),
        }

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"size": ()}

    def init_weights(self, generator: torch.Generator) -> Weights:
        return {"size": torch.tensor(0.1)}

    def summarize(self, coords: Coordinates, state: State) -> Tensor:
        momentum = state["mean"].squeeze(-2)
        return torch.stack((coords.grad.square().sum(-1), (momentum * coords.param).sum(-1)), -1)

    def describe(self, shape: tuple[int, ...]) -> tuple[float, ...]:
        return (max(1.0, float(math.prod(shape))),)

    def control(
        self, sums: Tensor, facts: Tensor, state: State, clock: Clock, weights: Weights
    ) -> tuple[Tensor, State]:
        assert clock.total_steps is not None
        norm = 0.5 * state["norm"] + torch.sqrt(sums.abs() / facts)
        left = (1 - clock.step / clock.total_steps).to(sums.dtype)
        return torch.stack((norm.sum(-2), left.expand_as(norm[..., 0, :])), -2), {"norm": norm}

    def update(
        self, coords: Coordinates, state: State, signals: Tensor, weights: Weights
    ) -> tuple[Tensor, State]:
        norm, left = signals.unbind(-2)
        mean = 0.9 * state["mean"].squeeze(-2) + coords.grad
        return -weights["size"] * left * mean / (norm + 1), {"mean": mean.unsqueeze(-2)}


class Straightened(Normalised):
    """With a stage for matrices, which needs all of a matrix and a signal."""

    name: ClassVar[str] = "straightened"

    def finishes(self, shape: tuple[int, ...]) -> bool:
        return len(shape) > 1 and math.prod(shape) > 0

    def finish(self, step: Tensor, signals: Tensor) -> Tensor:
        peak = step.abs().amax((-2, -1), keepdim=True)
        return signals[..., 1, None, None] * (step - step.mean(-2, keepdim=True)) / peak


RULES = {
    "l2l": L2L(layers=2, hidden=3),
    "adam": Adam(),
    "normalised": Normalised(),
    "straightened": Straightened(),
}


def make_batch(
    rule: UpdateRule,
    sizes: list[tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    maximize: bool = False,
    decay: float = 0.0,
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    compute = compute_dtype(dtype)
    weights = rule.init_weights(generator)
    slots = []
    for shape in sizes:
        param, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        state = rule.init_state(param)
        for value in state.values():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
        slots.append(Slot(param, grad, state, torch.tensor(4.0), tuple(shape)))
    return Batch(
        rule=rule,
        weights={key: w.to(compute) for key, w in weights.items()},
        slots=slots,
        lr=0.7,
        decay=decay,
        maximize=maximize,
        total_steps=100,
        device=torch.device("cpu"),
        compute_dtype=compute,
    )


def expected(batch: Batch, slot: Slot) -> tuple[Tensor, State]:
    """The rule on the whole tensor, with nothing but reshapes and casts around it."""
    rule, dtype = batch.rule, batch.compute_dtype
    state = {key: value.to(dtype) for key, value in slot.state.items()}
    flat = {key: state[key].reshape(state[key].shape[0], -1) for key in rule.keys_per("coordinate")}
    tensors = {key: state[key].unsqueeze(-1) for key in rule.keys_per("tensor")}
    sign = -1.0 if batch.maximize else 1.0
    coords = Coordinates(sign * slot.grad.to(dtype).reshape(-1), slot.param.to(dtype).reshape(-1))
    clock = Clock(slot.step[None] + 1, torch.tensor([float(batch.total_steps or 0)]))
    facts = torch.tensor(rule.describe(slot.shape), dtype=dtype).unsqueeze(-1)
    sums = rule.summarize(coords, flat).unsqueeze(-1)
    signals, tensors = rule.control(sums, facts, tensors, clock, batch.weights)
    step, flat = rule.update(coords, flat, signals, batch.weights)
    if rule.finishes(slot.shape):
        step = rule.finish(step.reshape(slot.shape[0], -1), signals[:, 0]).reshape(-1)
    if rule.owing is not None:
        key, row = rule.owing
        step, owed = defer(step, flat[key][row], signals[-2:])
        flat = flat | {key: torch.stack([*flat[key][:row], owed, *flat[key][row + 1 :]])}
    param = coords.param * (1 - batch.lr * batch.decay) + batch.lr * step
    new = {key: value.reshape(slot.state[key].shape) for key, value in (flat | tensors).items()}
    return param.reshape(slot.param.shape), new


def take_step(batch: Batch, finite: Tensor | None = None) -> None:
    backend = Eager()
    rows = backend.survey(batch)
    backend.move(batch, backend.control(batch, rows, finite), finite)


def check_against_whole_tensors(batch: Batch) -> None:
    wanted = [expected(batch, slot) for slot in batch.slots]
    take_step(batch)
    for slot, (param, state) in zip(batch.slots, wanted, strict=True):
        torch.testing.assert_close(slot.param, param.to(slot.param.dtype))
        for key, value in state.items():
            torch.testing.assert_close(slot.state[key], value.to(slot.state[key].dtype))
        assert slot.step == 5


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("block", [1, 64, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_blocks_of_any_size_equal_the_rule_on_whole_tensors(
    rule: UpdateRule, block: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(eager, "CPU_BLOCKS", (block, block))
    sizes = SIZES if block > 1 else SIZES[:5]
    check_against_whole_tensors(make_batch(rule, sizes, dtype))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_a_tensor_of_many_blocks_equals_the_rule_on_the_whole_tensor(rule: UpdateRule):
    check_against_whole_tensors(make_batch(rule, [(100_001,), (65,), (3,)]))
    check_against_whole_tensors(make_batch(rule, [(5, 3), (90, 10, 7), (64, 64), (3,), (3, 2)]))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_maximize_and_decay_equal_the_rule_on_whole_tensors(rule: UpdateRule):
    for sizes in ([(9000,)], SIZES):
        check_against_whole_tensors(make_batch(rule, sizes, maximize=True, decay=0.3))


def test_strided_tensors_are_updated_in_place():
    batch, plain = (make_batch(RULES["l2l"], [(50, 4), (50, 4)]) for _ in range(2))
    first, second = batch.slots
    first.param = first.param.T.contiguous().T
    first.grad = first.grad[:, :1].expand(50, 4)
    plain.slots[0].grad = first.grad.contiguous()
    wide = torch.zeros(50, 8)
    wide[:, ::2] = second.param
    second.param = wide[:, ::2]
    second.state["cell"] = second.state["cell"].transpose(0, 2).contiguous().transpose(0, 2)
    take_step(batch)
    take_step(plain)
    for slot, other in zip(batch.slots, plain.slots, strict=True):
        torch.testing.assert_close(slot.param, other.param)
        torch.testing.assert_close(slot.state["cell"], other.state["cell"])
    assert not wide[:, 1::2].any()
    assert wide[:, ::2].any()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_survey_finds_the_broken_gradients_and_only_those(rule: UpdateRule):
    batch = make_batch(rule, [(200,), (200,), (), (0,), (200,)])
    batch.slots[0].grad[150] = float("nan")
    batch.slots[2].grad.fill_(-float("inf"))
    batch.slots[4].grad[:2] = torch.tensor([3e38, -3e38])
    rows = Eager().survey(batch)
    assert rows.shape == (5, 1 + rule.summary_size)
    assert rows[:, 0].tolist() == [1, 0, 1, 0, 0]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("block", [64, 1 << 20])
@pytest.mark.parametrize("shapes", [[(70,), (50,), (5,)], [(10, 7), (50, 1), (5, 1)]])
def test_a_masked_tensor_keeps_everything_and_its_neighbours_move(
    rule: UpdateRule,
    block: int,
    shapes: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(eager, "CPU_BLOCKS", (block, block))
    batch = make_batch(rule, shapes, decay=0.5)
    batch.slots[1].grad[7] = float("nan")
    kept = [t.clone() for t in (batch.slots[1].param, *batch.slots[1].state.values())]
    wanted = [expected(batch, batch.slots[i]) for i in (0, 2)]
    take_step(batch, torch.tensor([True, False, True]))
    left = (batch.slots[1].param, *batch.slots[1].state.values())
    assert all(torch.equal(a, b) for a, b in zip(kept, left, strict=True))
    assert [slot.step.item() for slot in batch.slots] == [5, 4, 5]
    for slot, (param, state) in zip((batch.slots[0], batch.slots[2]), wanted, strict=True):
        torch.testing.assert_close(slot.param, param)
        for key, value in state.items():
            torch.testing.assert_close(slot.state[key], value.to(slot.state[key].dtype))


def test_a_step_that_is_not_finite_stays_out_of_its_coordinate_alone():
    rule = L2L(layers=1, hidden=3)
    batch = make_batch(rule, [(10,)])
    batch.slots[0].state["cell"][0, 4] = float("nan")
    before, state = batch.slots[0].param.clone(), batch.slots[0].state["cell"].clone()
    take_step(batch)
    assert (batch.slots[0].param == before).tolist() == [i == 4 for i in range(10)]
    assert torch.equal(batch.slots[0].state["cell"][1:, 4], state[1:, 4])


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_enough(broken: float):
    mask = eager.keeps(torch.tensor([1.0, broken, -1.0]), None)
    assert mask is not None
    assert mask.tolist() == [True, False, True]
    assert eager.keeps(torch.tensor([1.0, -1.0]), None) is None


def test_a_finished_step_that_is_not_finite_stays_out_of_its_tensor():
    batch = make_batch(RULES["straightened"], [(4, 3), (4, 3), (5,)], decay=0.5)
    batch.slots[0].grad.zero_()
    batch.slots[0].state["mean"].zero_()
    before = [slot.param.clone() for slot in batch.slots]
    take_step(batch)
    kept = [torch.equal(a, slot.param) for a, slot in zip(before, batch.slots, strict=True)]
    assert kept == [True, False, False]


def test_matrices_that_are_finished_together_equal_those_finished_alone(
    monkeypatch: pytest.MonkeyPatch,
):
    sizes = [(4, 3), (2, 2), (4, 3), (4, 3), (3, 4), (4, 3), (4, 3)]
    finite = torch.tensor([True] * 5 + [False, True])
    together, alone = (make_batch(RULES["straightened"], sizes, decay=0.5) for _ in range(2))
    for batch in (together, alone):
        batch.slots[2].grad.zero_()  # its finished step is not finite
        batch.slots[2].state["mean"].zero_()
    before = [slot.param.clone() for slot in together.slots]
    monkeypatch.setattr(last_stage, "STACKED", 36)  # of those with twelve numbers three
    take_step(together, finite)
    monkeypatch.setattr(last_stage, "STACKED", 0)
    take_step(alone, finite)
    for a, b in zip(together.slots, alone.slots, strict=True):
        torch.testing.assert_close(a.param, b.param)
    kept = [torch.equal(a, slot.param) for a, slot in zip(before, together.slots, strict=True)]
    assert kept == [i in (2, 5) for i in range(7)]


def test_strided_matrices_are_finished_in_place():
    batch, plain = (make_batch(RULES["straightened"], [(50, 4), (3,)]) for _ in range(2))
    batch.slots[0].param = batch.slots[0].param.T.contiguous().T
    take_step(batch)
    take_step(plain)
    torch.testing.assert_close(batch.slots[0].param, plain.slots[0].param)


def test_a_tensor_lr_gives_what_a_number_gives():
    batch, other = make_batch(RULES["l2l"], SIZES), make_batch(RULES["l2l"], SIZES)
    other.lr = torch.tensor(0.7)
    take_step(batch)
    take_step(other)
    for slot, twin in zip(batch.slots, other.slots, strict=True):
        torch.testing.assert_close(slot.param, twin.param)


def test_l2l_equals_torchs_lstm_in_float64():
    """Golden: nn.LSTMCell twice, the paper's preprocessing and a linear head, five steps."""
    rule = L2L(layers=2, hidden=20)
    batch = make_batch(rule, [(11, 3)], torch.float64)
    batch.lr = 1.0
    slot = batch.slots[0]
    slot.state["cell"].zero_()
    order = torch.cat([torch.arange(20 * b, 20 * b + 20) for b in (0, 1, 3, 2)])
    cells = [torch.nn.LSTMCell(n, 20).double() for n in (2, 20)]
    with torch.no_grad():
        for layer, cell in enumerate(cells):
            cell.weight_ih.copy_(batch.weights[f"cell.{layer}.w_ih"][order])
            cell.weight_hh.copy_(batch.weights[f"cell.{layer}.w_hh"][order])
            cell.bias_ih.copy_(batch.weights[f"cell.{layer}.b"][order])
            cell.bias_hh.zero_()
        theta = slot.param.reshape(-1).clone()
        hidden = [(torch.zeros(33, 20).double(), torch.zeros(33, 20).double()) for _ in cells]
        for k in range(5):
            scale = 10.0 ** (-2 * k)
            slot.grad = scale * torch.randn(
                11, 3, generator=torch.Generator().manual_seed(k), dtype=torch.float64
            )
            take_step(batch)
            g = slot.grad.reshape(-1)
            big = g.abs() >= torch.tensor(-10.0).exp()
            x = torch.stack(
                (
                    torch.where(big, g.abs().log() / 10, -1.0),
                    torch.where(big, g.sign(), g * torch.tensor(10.0).double().exp()),
                ),
                dim=1,
            )
            for layer, cell in enumerate(cells):
                hidden[layer] = cell(x, hidden[layer])
                x = hidden[layer][0]
            theta += 0.1 * (x @ batch.weights["head.w"].T + batch.weights["head.b"])[:, 0]
            torch.testing.assert_close(slot.param.reshape(-1), theta, rtol=1e-12, atol=1e-14)


def test_temporaries_are_as_large_as_a_block_not_as_the_tensor():
    batch = make_batch(L2L(layers=2, hidden=20), [(300_000,)])
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            mine = {slot_tensor.untyped_storage().data_ptr() for slot_tensor in tensors}
            for result in out if isinstance(out, tuple | list) else (out,):
                storage = result.untyped_storage() if isinstance(result, Tensor) else None
                if storage is not None and storage.data_ptr() not in mine:
                    largest = max(largest, storage.nbytes())
            return out

    slot = batch.slots[0]
    tensors = [slot.param, slot.grad, *slot.state.values()]
    with Watch():
        take_step(batch)
    assert 0 < largest <= 2 * 4 * 80 * Eager().block_size(batch)


@pytest.mark.parametrize(
    ("rule", "block"),
    [
        (L2L(layers=2, hidden=20), 2048),
        (L2L(layers=1, hidden=8), 8192),
        (L2L(layers=1, hidden=4), 16384),
        (RULES["adam"], 32768),
    ],
    ids=str,
)
def test_blocks_hold_as_much_state_whatever_the_rule(rule: UpdateRule, block: int):
    assert Eager().block_size(make_batch(rule, [(3,)])) == block


class Refusing(Backend):
    """A fused backend for nothing but float32."""

    name: ClassVar[str] = "refusing"

    @staticmethod
    def supports(rule: UpdateRule, device: torch.device, dtype: torch.dtype) -> str | None:
        return None if dtype == torch.float32 else "takes float32 parameters only"

    def sums(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def move(self, batch: Batch, signals: Tensor, finite: Tensor | None) -> None:
        raise NotImplementedError


def test_choose_prefers_what_supports_the_case_and_explains_when_it_must(
    monkeypatch: pytest.MonkeyPatch,
):
    rule, cpu = Adam(), torch.device("cpu")
    assert choose(rule, cpu, torch.float32, None) is Eager
    with pytest.raises(RuntimeError, match="no fused backend supports the rule 'adam'"):
        choose(rule, cpu, torch.float32, True)
    monkeypatch.setattr("learned_optim.backends.FUSED", (Refusing,))
    for fused in (None, True):
        assert choose(rule, cpu, torch.float32, fused) is Refusing
    assert choose(rule, cpu, torch.float32, False) is Eager
    assert choose(rule, cpu, torch.float64, None) is Eager
    with pytest.raises(RuntimeError, match="refusing: takes float32 parameters only"):
        choose(rule, cpu, torch.float64, True)
