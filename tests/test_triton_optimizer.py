"""The optimizer on the Triton backend, what chooses it, and the tables that its launches read."""

from __future__ import annotations

import copy
import pickle
import re
from collections import OrderedDict
from importlib import metadata
from typing import Any

import pytest
import torch
from backend_batches import make
from interpreted import DEVICE, why_not

from learned_optim import LearnedOptimizer, backends
from learned_optim.backends import Eager, base, choose, kept
from learned_optim.backends.kept import Kept, numbers
from learned_optim.backends.triton import Triton, backend, packing, tables
from learned_optim.rules import L2L, Adam, Default
from learned_optim.weights import in_memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
L2L_RULE = L2L(layers=1, hidden=4)
here = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def rule_of(kind: L2L | Default):
    weights = kind.init_weights(torch.Generator().manual_seed(0))
    heads = {key: w + 0.1 if ".head." in key else w for key, w in weights.items()}  # none is idle
    return in_memory(kind, heads, name="drawn")


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    layers = torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
    return torch.nn.Sequential(*layers).to(DEVICE)


def train(model: torch.nn.Module, optimizer: LearnedOptimizer, steps: int, step=None) -> None:
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        (step or optimizer.step)()


def assert_near(model: torch.nn.Module, other: torch.nn.Module) -> None:
    # On a GPU the reference's matrix stage is the same, but what it starts from is rounded.
    tolerance = 1e-5 if DEVICE.type == "cpu" else 1e-3
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@pytest.fixture
def everywhere(monkeypatch):
    """The backend serves whatever device the tests run on."""

    def supports(rule, device, dtype):
        return backend.unknown(rule)

    monkeypatch.setattr(Triton, "supports", staticmethod(supports))
    monkeypatch.setattr(backends, "FUSED", (Triton,))


@here
@pytest.mark.parametrize("kind", [L2L_RULE, Default()], ids=str)
def test_a_training_run_equals_the_reference_and_checkpoints_move(everywhere, kind):
    model = network()
    twin = copy.deepcopy(model)
    fast = LearnedOptimizer(model.parameters(), rule_of(kind), weight_decay=0.1, fused=True)
    slow = LearnedOptimizer(twin.parameters(), rule_of(kind), weight_decay=0.1, fused=False)
    train(model, fast, 3)
    train(twin, slow, 3)
    assert_near(model, twin)
    # Each goes on from where the other stopped.
    saved = [copy.deepcopy(optimizer.state_dict()) for optimizer in (slow, fast)]
    for net, state, fused in ((model, saved[0], True), (twin, saved[1], False)):
        optimizer = LearnedOptimizer(net.parameters(), rule_of(kind), fused=fused)
        state["param_groups"][0]["fused"] = fused
        optimizer.load_state_dict(state)
        train(net, optimizer, 2)
    assert_near(model, twin)


@here
def test_a_broken_gradient_sits_out_and_warns(everywhere):
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), rule_of(L2L_RULE), fused=True)
    train(model, optimizer, 1)
    before = [param.detach().clone() for param in model.parameters()]
    first = next(model.parameters())
    first.grad[0, 0] = float("nan")  # type: ignore[index]
    if DEVICE.type == "cpu":
        with pytest.warns(UserWarning, match="NaN or infinity"):
            optimizer.step()
    else:
        optimizer.step()
    assert torch.equal(first, before[0])
    assert not torch.equal(list(model.parameters())[1], before[1])


@here
def test_copies_and_pickles_go_on(everywhere):
    model = network()
    optimizer = LearnedOptimizer(model.parameters(), rule_of(L2L_RULE), fused=True)
    train(model, optimizer, 1)
    model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    twin, other = copy.deepcopy((model, optimizer))
    train(model, optimizer, 1)
    train(twin, other, 1)
    assert_near(model, twin)


@here
@pytest.mark.parametrize("kind", [L2L_RULE, Default()], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_is_one_graph_and_equals_the_reference(everywhere, kind):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = network()
    twin = copy.deepcopy(model)
    traced = LearnedOptimizer(model.parameters(), rule_of(kind), weight_decay=0.1, fused=True)
    slow = LearnedOptimizer(twin.parameters(), rule_of(kind), weight_decay=0.1, fused=False)
    step = torch.compile(lambda: traced.step(), backend="aot_eager", fullgraph=True)
    train(model, traced, 3, step)
    train(twin, slow, 3)
    assert_near(model, twin)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("rule", "dtype", "lacks"),
    [
        (L2L(cell="gru"), torch.float32, "it knows the rules 'l2l' with cell 'lstm' and 'default'"),
        (Adam(), torch.float32, "it knows the rules"),
        (L2L(layers=3), torch.float32, "it has at most 2 layers of 32"),
        (L2L(hidden=33), torch.float32, "it has at most 2 layers of 32"),
        (Default(hidden=9), torch.float32, "it has at most 8 units a coordinate"),
        (L2L(), torch.float64, r"it has no torch\.float64"),
    ],
)
def test_it_says_what_it_lacks(monkeypatch, rule, dtype, lacks):
    monkeypatch.setattr(backend, "_MISSING", None)
    monkeypatch.setattr(backend, "_unable", lambda device: None)
    monkeypatch.setattr(backend, "cannot_launch", lambda device: None)
    with pytest.raises(RuntimeError, match="triton: " + lacks):
        choose(rule, CUDA, dtype, True)
    assert choose(rule, CUDA, dtype, None) is Eager


def test_cuda_parameters_get_it(monkeypatch):
    monkeypatch.setattr(backend, "_MISSING", None)
    monkeypatch.setattr(backend, "_unable", lambda device: None)
    monkeypatch.setattr(backend, "capturing", lambda device: False)
    monkeypatch.setattr(backend, "cannot_launch", lambda device: None)
    for rule in (L2L(), L2L_RULE, Default()):
        assert choose(rule, CUDA, torch.bfloat16, None) is Triton
        assert choose(rule, CUDA, torch.float32, True) is Triton
        assert choose(rule, CUDA, torch.float32, False) is Eager


def test_without_triton_or_a_gpu_it_explains(monkeypatch):
    monkeypatch.setattr(backend, "_MISSING", "it needs the package triton")
    with pytest.raises(RuntimeError, match="triton: it needs the package triton"):
        choose(L2L(), CUDA, torch.float32, True)
    assert Triton.supports(L2L(), CPU, torch.float32) == "it runs on CUDA devices, not on cpu"
    monkeypatch.setattr(backend, "_MISSING", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="triton: there is no CUDA device"):
        choose(L2L(), CUDA, torch.float32, True)
    assert choose(L2L(), CUDA, torch.float32, None) is Eager


@pytest.mark.parametrize(("version", "fits"), [("3.1.0", False), ("3.2.0", True), ("4.0", True)])
def test_old_versions_are_named(monkeypatch, version, fits):
    monkeypatch.setattr(backend.metadata, "version", lambda name: version)
    found = backend.missing()
    assert (found is None) == fits
    assert fits or re.search(r"3\.2 or later and finds 3\.1\.0", str(found))


def test_it_refuses_a_rule_it_does_not_know():
    with pytest.raises(TypeError, match="no kernel for the rule 'adam'"):
        packing.pack(Adam(), {})


def test_a_table_holds_its_numbers_exactly():
    addresses = [0, 1, 2**31, 2**53 + 1, 0x7FFF_FFFF_FFFF_FFF8]
    assert numbers(addresses, torch.int64, CPU).tolist() == addresses
    assert numbers([0.5, -3.0], torch.float32, CPU).tolist() == [0.5, -3.0]
    assert numbers([], torch.int64, CPU).shape == (0,)


def test_blocks_are_dealt_out_in_the_order_that_is_asked_for():
    layout = tables.lay_out([10, 0, 3, 9], [2, 3, 0, 1], 4, CPU)
    assert layout.owners.tolist() == [2, 3, 3, 3, 0, 0, 0]
    assert layout.firsts.tolist() == [4, 7, 0, 1]
    assert layout.sizes.tolist() == [10, 0, 3, 9]
    assert layout.span([3, 0]) == (1, 6)
    assert layout.span([1]) == (7, 0)
    assert layout.span([]) == (0, 0)


def test_where_no_kernel_can_be_launched_the_reference_serves_and_fused_explains(monkeypatch):
    """As without a C compiler; here for want of a device."""
    monkeypatch.setattr(backend, "_unable", lambda device: None)
    monkeypatch.setattr(backend, "capturing", lambda device: False)
    monkeypatch.setattr(backend, "_MISSING", None)
    device = torch.device("cuda", 0)
    assert choose(L2L_RULE, device, torch.float32, None) is Eager
    with pytest.raises(RuntimeError, match="triton cannot launch a kernel here"):
        choose(L2L_RULE, device, torch.float32, True)


@pytest.mark.parametrize("name", backend.NAMES)
def test_triton_comes_in_packages_of_several_names(monkeypatch, name):
    versions = {name: "3.4.0"}

    def version(package: str) -> str:
        if package not in versions:
            raise metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(backend.metadata, "version", version)
    assert backend.missing() is None
    versions[name] = "3.1.0"
    assert str(backend.missing()).endswith("finds 3.1.0")


def test_tables_are_made_once_and_the_oldest_goes():
    made = []
    store = Kept(room=2)

    def get(key: str) -> str:
        return store.get(key, CPU, lambda: made.append(key) or key.upper())

    assert [get(key) for key in "aabacab"] == list("AABACAB")
    assert made == ["a", "b", "c", "b"]


def test_another_thread_may_drop_a_table_at_any_time(monkeypatch):
    """Simulated by a dictionary that is used by somebody else right after it was written."""
    store = Kept(room=1)

    class Shared(OrderedDict):
        def __setitem__(self, key: Any, value: Any) -> None:
            super().__setitem__(key, value)
            if key[0] == "a":
                store.get("b", CPU, lambda: "B")

    monkeypatch.setattr(store, "_recent", Shared())
    assert store.get("a", CPU, lambda: "A") == "A"
    assert store.get("b", CPU, lambda: "made anew") == "B"
    assert store.get("a", CPU, lambda: "A") == "A"


def test_what_a_captured_graph_reads_stays_and_what_it_makes_is_its_own(monkeypatch):
    store, made = Kept(room=1), []

    def get(key: str) -> torch.Tensor:
        return store.get(key, CPU, lambda: made.append(key) or torch.zeros(2))

    before = get("a")
    monkeypatch.setattr(kept, "capturing", lambda device: True)
    assert get("a") is before
    own = get("b")
    assert get("b") is not own
    monkeypatch.setattr(kept, "capturing", lambda device: False)
    get("c")
    monkeypatch.setattr(kept, "capturing", lambda device: True)
    assert get("a") is before
    assert made == ["a", "b", "b", "c"]


def test_facts_are_put_on_a_device_without_a_copy_from_the_host():
    batch = make(Default(), [(3, 4), (5,)])
    wanted = base.facts(batch)
    for slot in batch.slots:
        slot.param, slot.grad = slot.param.to("meta"), slot.grad.to("meta")
    batch.device = torch.device("meta")
    assert base.facts(batch).shape == wanted.shape == (5, 2)
    assert base.facts(batch) is base.facts(batch)


@pytest.mark.parametrize("kind", [L2L_RULE, Default()], ids=str)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_the_reference_mixes_no_devices(kind, tensor_lr):
    # Tensors without memory stand for those of a GPU: an operation on one of them and one of the
    # host raises, and so does reading a value back.
    lr = torch.tensor(0.5) if tensor_lr else 1.0
    params = [torch.zeros(4, 3, device="meta"), torch.zeros(7, device="meta")]
    optimizer = LearnedOptimizer(params, rule_of(kind), lr=lr, total_steps=9, fused=False)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    kinds = {x.device.type for entry in optimizer.state.values() for x in entry.values()}
    assert kinds == {"meta"}
    with pytest.raises(RuntimeError, match="device"):
        params[0].add(torch.zeros(4, 3))
