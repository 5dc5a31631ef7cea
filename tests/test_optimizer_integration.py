"""What people put around an optimizer: schedulers, scaling, hooks, compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_training import (
    ADAM,
    GRU,
    LSTM,
    assert_near,
    awake,
    data,
    fit,
    frozen_state,
    loss_of,
    make,
    mlp,
    parameters,
    same,
    same_tree,
    set_grads,
    snapshot,
    through_file,
)
from torch import Tensor, nn
from torch.optim import lr_scheduler

from learned_optim.rules import Default

RULES = pytest.mark.parametrize("rule", [ADAM, LSTM, GRU], ids=["adam", "lstm", "gru"])
# With sums, a controller and a stage for whole matrices.
DEFAULT = awake(Default(hidden=2, controller=2), name="default")


# ----------------------------------------------------------------------------------- schedulers


@pytest.mark.parametrize(
    "build",
    [
        lambda o: lr_scheduler.StepLR(o, 2, 0.5),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
        lambda o: lr_scheduler.LambdaLR(o, lambda k: min(1.0, (k + 1) / 5)),
        lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=20, cycle_momentum=False),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, 1, 3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
        ),
    ],
    ids=["step", "cosine", "lambda", "onecycle", "sequential"],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
def test_schedulers_scale_the_steps_like_adams(build: Callable[..., Any]):
    ours, theirs = parameters(), parameters()
    optimizer, reference = make(ours, ADAM), torch.optim.Adam(theirs, lr=1.0)
    schedulers = build(optimizer), build(reference)
    for k in range(8):
        set_grads(ours, k)
        set_grads(theirs, k)
        rate = reference.param_groups[0]["lr"]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        reference.param_groups[0]["lr"] = rate * 1e-2
        optimizer.step()
        reference.step()
        reference.param_groups[0]["lr"] = rate
        for scheduler in schedulers:
            scheduler.step()
    assert_near(ours, theirs, 1e-5)


def test_plateau_scheduler_and_a_rate_of_zero():
    params = parameters()
    optimizer = make(params)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for _ in range(3):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == 0.25
    optimizer.param_groups[0]["lr"] = 0.0
    before = snapshot(params)
    set_grads(params, 0)
    optimizer.step()
    assert same(params, before)


def test_a_tensor_rate_is_filled_by_schedulers_and_never_replaced():
    numbers, tensors = parameters(), parameters()
    rate = torch.tensor(1.0)
    plain, other = make(numbers, lr=1.0), make(tensors, lr=rate)
    schedulers = [lr_scheduler.ExponentialLR(o, 0.5) for o in (plain, other)]
    for k in range(4):
        set_grads(numbers, k)
        set_grads(tensors, k)
        plain.step()
        other.step()
        for scheduler in schedulers:
            scheduler.step()
    assert other.param_groups[0]["lr"] is rate
    assert rate == 0.5**4
    assert_near(tensors, numbers, 1e-6)


def test_cycling_the_momentum_is_refused_by_torch():
    with pytest.raises(ValueError, match="momentum"):
        lr_scheduler.OneCycleLR(make(parameters()), 1.0, total_steps=10)


def test_resume_with_a_scheduler_is_the_same_bit_for_bit():
    def build() -> tuple[nn.Module, Any, Any]:
        model = mlp()
        optimizer = make(model.parameters())
        return model, optimizer, lr_scheduler.CosineAnnealingLR(optimizer, 10)

    def go(model: nn.Module, optimizer: Any, scheduler: Any, batches: Any) -> None:
        for batch in batches:
            fit(model, optimizer, [batch])
            scheduler.step()

    run, again = build(), build()
    go(*run, data(8)[:4])
    saved = through_file([part.state_dict() for part in run])
    go(*run, data(8)[4:])
    for index in (0, 2, 1):
        again[index].load_state_dict(saved[index])
    go(*again, data(8)[4:])
    assert same(run[0], again[0])


# ---------------------------------------------------------------------- scaling, hooks, wrappers


def test_grad_scaler_skips_overflows_and_equals_unscaled_training():
    model, twin = mlp(), mlp()
    plain, scaled = make(model.parameters()), make(twin.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    for k, batch in enumerate(data(6)):
        if k == 3:
            before, state = snapshot(twin), frozen_state(scaled)
            scaled.zero_grad()
            scaler.scale(loss_of(twin, batch)).backward()
            next(twin.parameters()).grad[0, 0] = float("inf")  # type: ignore[index]
            scaler.step(scaled)
            scaler.update()
            assert same(twin, before)
            assert same_tree(state, scaled.state_dict())
        fit(model, plain, [batch])
        scaled.zero_grad()
        scaler.scale(loss_of(twin, batch)).backward()
        if k % 2:
            scaler.unscale_(scaled)
            nn.utils.clip_grad_norm_(twin.parameters(), 1e9)
        scaler.step(scaled)
        scaler.update()
    assert_near(model, twin, 1e-5)


def test_gradients_may_be_accumulated_and_zeroed_in_place():
    model, twin = mlp(), mlp()
    whole, parts = make(model.parameters()), make(twin.parameters())
    for x, y in data(4):
        fit(model, whole, [(x, y)])
        parts.zero_grad(set_to_none=False)
        for k in range(4):
            (loss_of(twin, (x[k::4], y[k::4])) / 4).backward()
        parts.step()
    assert_near(model, twin, 1e-4)


def test_stepping_in_backward_hooks_equals_stepping_after():
    model, twin = mlp(), mlp()
    optimizer = make(model.parameters())
    each = {p: make([p]) for p in twin.parameters()}

    def hook(param: Tensor) -> None:
        each[param].step()  # type: ignore[index]
        each[param].zero_grad()  # type: ignore[index]

    for param in twin.parameters():
        param.register_post_accumulate_grad_hook(hook)
    for batch in data(4):
        fit(model, optimizer, [batch])
        loss_of(twin, batch).backward()
    assert_near(model, twin, 1e-5)


def test_parametrizations_freezing_and_averaging():
    parametrizations = nn.utils.parametrizations
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 8)),
        nn.Tanh(),
        parametrizations.orthogonal(nn.Linear(8, 8)),
        nn.Tanh(),
        nn.Linear(8, 2),
    )
    optimizer = make(model.parameters(), ADAM)
    average = torch.optim.swa_utils.AveragedModel(model)
    scheduler = torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.5)
    batches = data(20)
    first = loss_of(model, batches[0]).item()
    for batch in batches:
        fit(model, optimizer, [batch])
        average.update_parameters(model)
        scheduler.step()
    assert loss_of(average, batches[0]).item() < first
    model[4].requires_grad_(False)
    optimizer.zero_grad()
    frozen = snapshot(model[4])
    fit(model, optimizer, data(3))
    assert same(model[4], frozen)


def test_the_profiler_names_the_step():
    params = parameters()
    optimizer = make(params)
    set_grads(params, 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
        optimizer.zero_grad()
    names = {event.key for event in profile.key_averages()}
    assert "Optimizer.step#LearnedOptimizer.step" in names
    assert "Optimizer.zero_grad#LearnedOptimizer.zero_grad" in names


def test_it_has_no_modes_that_trainers_would_switch():
    assert not hasattr(make(parameters()), "train")
    assert not hasattr(make(parameters()), "eval")


# ----------------------------------------------------------------------------------- compilation


@pytest.mark.parametrize("rule", [ADAM, LSTM, GRU, DEFAULT], ids=["adam", "lstm", "gru", "default"])
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_equals_eager_and_does_not_recompile(rule: Any):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model, twin = mlp(), mlp()
    # By torch's operations, of which a graph consists: the kernels' QR of bases rounds otherwise.
    eager, traced = make(model.parameters(), rule, fused=False), make(twin.parameters(), rule)
    for p in (eager, traced):
        p.param_groups[0]["weight_decay"] = 0.1
    step = torch.compile(lambda: traced.step(), backend="aot_eager")
    graphs = []
    for batch in data(8):
        fit(model, eager, [batch])
        traced.zero_grad()
        loss_of(twin, batch).backward()
        step()
        graphs.append(counters["stats"]["unique_graphs"])
    assert_near(twin, model, 1e-5)
    assert graphs == [1] * 8
    assert sum(counters["graph_break"].values()) == 0
    # A broken gradient is masked inside the graph.
    before = snapshot(twin)
    next(twin.parameters()).grad[0, 0] = float("nan")  # type: ignore[index]
    step()
    after = snapshot(twin)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


@pytest.mark.filterwarnings("ignore")
def test_a_whole_train_step_compiles():
    torch._dynamo.reset()
    model, twin = mlp(), mlp()
    eager, traced = make(model.parameters()), make(twin.parameters())

    @torch.compile(backend="aot_eager")
    def train(batch: tuple[Tensor, Tensor]) -> None:
        traced.zero_grad()
        loss_of(twin, batch).backward()
        traced.step()

    for batch in data(4):
        fit(model, eager, [batch])
        train(batch)
    assert_near(twin, model, 1e-5)


def test_small_tensors_share_a_block_when_compiled():
    from learned_optim.backends import blocks

    found = blocks.few([3, 0, blocks.TOGETHER + 1, 5, blocks.TOGETHER])
    assert [[piece.slot for piece in block] for block in found] == [[0, 3, 4], [2]]
    assert blocks.few([0]) == []
