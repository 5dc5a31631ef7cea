"""On a GPU: the backends agree, nothing waits, CUDA graphs and the compiler can have the step.

Without one every test here is skipped; what can be tested without is in the other files.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch

from learned_optim import LearnedOptimizer
from learned_optim.rules import L2L, Default
from learned_optim.weights import in_memory

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

RULES = [L2L(), L2L(layers=1, hidden=8), Default(matrix=False), Default()]
FUSED = [True, False]


def optimizer_of(model: torch.nn.Module, kind: L2L | Default, **options) -> LearnedOptimizer:
    weights = kind.init_weights(torch.Generator().manual_seed(0))
    heads = {key: w + 0.1 if ".head." in key else w for key, w in weights.items()}  # none is idle
    return LearnedOptimizer(model.parameters(), in_memory(kind, heads, name="drawn"), **options)


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    layers = torch.nn.Linear(33, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3)
    return torch.nn.Sequential(*layers).cuda()


def backward(model: torch.nn.Module) -> None:
    x = torch.randn(16, 33, generator=torch.Generator().manual_seed(1)).cuda()
    model(x).square().mean().backward()


def assert_near(model: torch.nn.Module, other: torch.nn.Module, tolerance: float) -> None:
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", RULES, ids=str)
def test_the_backends_agree(kind):
    model = network()
    twin = copy.deepcopy(model)
    for net, fused in ((model, True), (twin, False)):
        optimizer = optimizer_of(net, kind, fused=fused, weight_decay=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            backward(net)
            optimizer.step()
    # The matrix stage runs in bfloat16 on CUDA.
    assert_near(model, twin, 1e-2 if kind == Default() else 1e-4)


@pytest.mark.parametrize("kind", RULES, ids=str)
@pytest.mark.parametrize("fused", FUSED)
def test_a_step_waits_for_nothing(kind, fused):
    model = network()
    optimizer = optimizer_of(model, kind, fused=fused, total_steps=9)
    for _ in range(2):  # the first compiles
        backward(model)
        optimizer.step()
    backward(model)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", RULES, ids=str)
@pytest.mark.parametrize("fused", FUSED)
def test_a_captured_train_step_equals_the_plain_one(kind, fused):
    model = network()
    twin = copy.deepcopy(model)
    lr = torch.tensor(1.0, device="cuda")
    captured = optimizer_of(model, kind, fused=fused, lr=lr)
    plain = optimizer_of(twin, kind, fused=fused, lr=lr)
    data = torch.randn(16, 33, device="cuda")

    def train(net: torch.nn.Module, optimizer: LearnedOptimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        net(data).square().mean().backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            train(model, captured)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    captured.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        train(model, captured)
    for _ in range(3):
        train(twin, plain)
    for number in range(5):
        data.copy_(torch.randn(16, 33))
        lr.fill_(0.5**number)
        graph.replay()
        train(twin, plain)
    assert_near(model, twin, 1e-4)
    assert all(state["step"] == 8 for state in captured.state.values())


@pytest.mark.parametrize("kind", RULES, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_train_step_equals_the_plain_one(kind):
    torch._dynamo.reset()
    model = network()
    twin = copy.deepcopy(model)
    traced, plain = (optimizer_of(net, kind, fused=True) for net in (model, twin))

    @torch.compile
    def train() -> None:
        traced.zero_grad()
        backward(model)
        traced.step()

    for _ in range(4):
        train()
        plain.zero_grad()
        backward(twin)
        plain.step()
    assert_near(model, twin, 1e-3)


@pytest.mark.parametrize("fused", FUSED)
def test_a_broken_gradient_sits_out_and_the_warning_comes_later(fused):
    model = network()
    optimizer = optimizer_of(model, L2L(layers=1, hidden=8), fused=fused)
    backward(model)
    first = next(model.parameters())
    before = first.detach().clone()
    first.grad[0, 0] = math.inf  # type: ignore[index]

    def steps() -> None:
        for _ in range(5):
            optimizer.step()
            torch.cuda.synchronize()

    with pytest.warns(UserWarning, match="NaN or infinity"):
        steps()
    assert torch.equal(first, before)


def test_a_checkpoint_moves_from_the_gpu_to_the_cpu():
    model = network()
    optimizer = optimizer_of(model, L2L(layers=1, hidden=8), fused=True)
    backward(model)
    optimizer.step()
    there = copy.deepcopy(model).cpu()
    other = optimizer_of(there, L2L(layers=1, hidden=8), fused=False)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["fused"] = False
    other.load_state_dict(saved)
    for net, mover in ((model, optimizer), (there, other)):
        for param in net.parameters():
            param.grad = torch.full_like(param, 0.01)
        mover.step()
    assert_near(model.cpu(), there, 1e-5)
