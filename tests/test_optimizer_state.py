"""The life of the state: checkpoints, copies, pickles, hooks, named parameters."""

from __future__ import annotations

import copy
import pickle
from collections import defaultdict
from typing import Any

import pytest
import torch
from small_training import (
    ADAM,
    GRU,
    LSTM,
    data,
    fit,
    frozen_state,
    loaded,
    make,
    mlp,
    parameters,
    same,
    same_tree,
    set_grads,
    snapshot,
    through_file,
)
from test_eager_backend import Normalised
from torch import nn

from learned_optim.hub import load_rule
from learned_optim.rules import L2L, Adam

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

NORMALISED = loaded(Normalised(), name="normalised")
RULES = pytest.mark.parametrize(
    "rule",
    [ADAM, LSTM, GRU, NORMALISED, load_rule("default")],
    ids=["adam", "lstm", "gru", "normalised", "default"],
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def options(rule: Any) -> dict[str, Any]:
    return {"rule": rule, "total_steps": 100}


# -------------------------------------------------------------------------------------- resume


@RULES
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_a_resumed_run_is_the_same_bit_for_bit(rule: Any, dtype: torch.dtype, used: bool):
    batches, model = data(8, dtype=dtype), mlp(dtype=dtype)
    optimizer = make(model.parameters(), **options(rule))
    fit(model, optimizer, batches[:4])
    checkpoint = through_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    assert same_tree(checkpoint["optimizer"], optimizer.state_dict())
    fit(model, optimizer, batches[4:])

    again = mlp(5, dtype=dtype)
    other = make(again.parameters(), **options(rule))
    if used:
        fit(again, other, data(2, seed=3, dtype=dtype))
    again.load_state_dict(checkpoint["model"])
    other.load_state_dict(checkpoint["optimizer"])
    fit(again, other, batches[4:])
    assert same(model, again)
    assert same_tree(optimizer.state_dict(), other.state_dict())


def test_a_run_of_mixed_dtypes_resumes_bit_for_bit():
    params = [p for dtype in DTYPES for p in parameters(((4, 3),), dtype)]
    optimizer = make(params)
    for k in range(3):
        set_grads(params, k)
        optimizer.step()
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    other = make(twins)
    other.load_state_dict(through_file(optimizer.state_dict()))
    for k in range(3, 6):
        set_grads(params, k)
        set_grads(twins, k)
        optimizer.step()
        other.step()
    assert same(params, twins)


def test_a_checkpoint_of_an_optimizer_that_never_stepped_loads():
    params = parameters()
    optimizer = make(params, lr=0.25)
    other = make(parameters())
    other.load_state_dict(through_file(optimizer.state_dict()))
    assert other.param_groups[0]["lr"] == 0.25
    assert not other.state


@RULES
def test_a_checkpoint_moves_between_parameter_dtypes(rule: Any):
    model = mlp()
    optimizer = make(model.parameters(), **options(rule))
    fit(model, optimizer, data(3))
    saved = frozen_state(optimizer)
    for dtype in DTYPES:
        other = mlp(dtype=dtype)
        target = make(other.parameters(), **options(rule))
        target.load_state_dict(saved)
        for param, entries in zip(other.parameters(), saved["state"].values(), strict=True):
            for key, value in entries.items():
                kept = key == "step" or dtype != torch.float64
                assert target.state[param][key].dtype == (value.dtype if kept else dtype)
                assert torch.equal(target.state[param][key].to(value.dtype), value)
        fit(other, target, data(2, dtype=dtype))


def test_loading_shares_no_memory_with_the_checkpoint_and_does_not_change_it():
    model, other = mlp(), mlp()
    optimizer, target = make(model.parameters()), make(other.parameters())
    fit(model, optimizer, data(3))
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    target.load_state_dict(saved)
    fit(other, target, data(2, seed=4))
    assert same_tree(saved, kept)


def test_state_dict_is_plain_and_taking_it_changes_nothing():
    model, twin = mlp(), mlp()
    optimizer, watched = make(model.parameters()), make(twin.parameters())
    for batch in data(4):
        fit(model, optimizer, [batch])
        fit(twin, watched, [batch])
        assert same_tree(watched.state_dict(), watched.state_dict())
    assert same(model, twin)
    state = watched.state_dict()
    assert set(state["state"]) == set(range(6))
    for entries in state["state"].values():
        assert all(isinstance(value, torch.Tensor) for value in entries.values())
    assert isinstance(watched.state, defaultdict)
    assert state["param_groups"][0]["rule_sha256"] == LSTM.sha256


def test_a_group_added_midway_is_saved_and_resumed():
    params = parameters(((4, 3), (4, 3)))
    optimizer = make(params[:1])
    set_grads(params, 0)
    optimizer.step()
    optimizer.add_param_group({"params": params[1:], "rule": ADAM})
    set_grads(params, 1)
    optimizer.step()
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    other = make([{"params": twins[:1]}, {"params": twins[1:], "rule": ADAM}])
    other.load_state_dict(through_file(optimizer.state_dict()))
    for k in range(2, 4):
        set_grads(params, k)
        set_grads(twins, k)
        optimizer.step()
        other.step()
    assert same(params, twins)
    assert [optimizer.state[p]["step"].item() for p in params] == [4, 3]


def test_a_checkpoints_horizon_is_taken_and_said_where_another_was_given():
    params = parameters()
    saved = make(params, total_steps=100).state_dict()
    longer = make(params, total_steps=200)
    with pytest.warns(
        UserWarning, match=r"total_steps=200, and the checkpoint has put 100"
    ) as seen:
        longer.load_state_dict(saved)
    assert seen[0].filename == __file__
    assert longer.param_groups[0]["total_steps"] == 100
    for same_horizon in (make(params, total_steps=100), make(params)):
        same_horizon.load_state_dict(saved)  # warnings are errors here
        assert same_horizon.param_groups[0]["total_steps"] == 100


@pytest.mark.skipif(TORCH < (2, 6), reason="torch takes named parameters from 2.6 on")
def test_named_parameters_are_saved_by_name_and_load_into_unnamed_ones():
    model, other = mlp(), mlp()
    optimizer, target = make(model.named_parameters()), make(other.parameters())
    fit(model, optimizer, data(3))
    names = [name for name, _ in model.named_parameters()]
    saved = through_file(optimizer.state_dict())
    assert saved["param_groups"][0]["param_names"] == names
    other.load_state_dict(model.state_dict())
    target.load_state_dict(saved)
    assert target.state_dict()["param_groups"][0]["param_names"] == names
    fit(model, optimizer, data(2, seed=5))
    fit(other, target, data(2, seed=5))
    assert same(model, other)


def test_an_older_checkpoint_loads():
    model = mlp()
    optimizer = make(model.parameters())
    fit(model, optimizer, data(3))
    old = frozen_state(optimizer)
    for key in ("maximize", "fused", "total_steps", "weight_decay"):
        del old["param_groups"][0][key]
    for entries in old["state"].values():
        entries["step"] = entries["step"].item()
    twin = copy.deepcopy(model)
    target = make(twin.parameters())
    target.load_state_dict(old)
    fit(model, optimizer, data(2, seed=5))
    fit(twin, target, data(2, seed=5))
    assert same(model, twin)


# -------------------------------------------------------------------- checkpoints that do not fit


def stepped(rule: Any = LSTM, **more: Any) -> Any:
    params = parameters()
    optimizer = make(params, rule, **more)
    set_grads(params, 0)
    optimizer.step()
    return optimizer


def test_a_checkpoint_of_other_weights_is_refused_by_both_names_and_nothing_changes():
    optimizer = stepped(lr=0.5)
    before = frozen_state(optimizer)
    wrong = [
        loaded(L2L(layers=2, hidden=3), seed=1, name="retrained"),
        loaded(L2L(layers=2, hidden=3, scale=0.2), name="rescaled"),
        loaded(Adam(), name="adam"),
    ]
    for rule in wrong:
        with pytest.raises(ValueError, match=rule.name) as caught:
            optimizer.load_state_dict(stepped(rule).state_dict())
        message = str(caught.value)
        assert "'lstm'" in message
        assert LSTM.sha256 in message
        assert rule.sha256 in message
        assert same_tree(before, optimizer.state_dict())


def test_the_name_alone_is_no_quarrel():
    renamed = loaded(LSTM.rule, name="renamed")
    optimizer = stepped()
    optimizer.load_state_dict(stepped(renamed).state_dict())
    assert optimizer.param_groups[0]["rule"] == "lstm"
    optimizer.step()


def test_a_config_field_that_an_older_version_did_not_have_is_no_quarrel():
    saved = frozen_state(stepped())
    group = saved["param_groups"][0]
    group["rule_config"] = group["rule_config"].replace('"forget_bias": 1.0, ', "")
    optimizer = stepped()
    optimizer.load_state_dict(saved)
    optimizer.step()


def test_a_checkpoint_of_another_optimizer_is_refused():
    params = parameters()
    set_grads(params, 0)
    adam = torch.optim.Adam(params)
    adam.step()
    with pytest.raises(ValueError, match="not written by LearnedOptimizer"):
        stepped().load_state_dict(adam.state_dict())


def test_checkpoints_of_other_shapes_are_refused():
    saved = frozen_state(stepped())
    target = stepped()
    before = frozen_state(target)
    longer = parameters(((4, 3), (6,), ()))
    with pytest.raises(ValueError, match=r"'cell' of parameter 1 has shape \(12, 5\)"):
        make(longer).load_state_dict(saved)
    for spoil, message in (("cell", "lacks 'cell'"), ("step", "lacks 'step'")):
        broken = copy.deepcopy(saved)
        del broken["state"][0][spoil]
        with pytest.raises(ValueError, match=message):
            target.load_state_dict(broken)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        make([{"params": [p]} for p in parameters()]).load_state_dict(saved)
    with pytest.raises(ValueError, match="doesn't match the size"):
        make(parameters()[:2]).load_state_dict(saved)
    assert same_tree(before, target.state_dict())


@pytest.mark.parametrize("entry", ["left", "right", "spread"])
def test_a_checkpoint_without_a_matrix_basis_is_refused(entry: str):
    params = parameters()
    set_grads(params, 0)
    optimizer = make(params, load_rule("default"))
    optimizer.step()
    saved = frozen_state(optimizer)
    del saved["state"][0][entry]
    with pytest.raises(ValueError, match=f"lacks '{entry}'"):
        optimizer.load_state_dict(saved)


# ------------------------------------------------------------------------------ copy and pickle


@RULES
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_go_on_alike_and_apart(rule: Any, how: str):
    model = mlp()
    optimizer = make(model.parameters(), **options(rule))
    fit(model, optimizer, data(3))
    pair = (model, optimizer)
    twin, other = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    public = [{key for key in vars(o) if not key.startswith("_")} for o in (optimizer, other)]
    assert public[0] == public[1]
    before, state = snapshot(model), frozen_state(optimizer)
    fit(twin, other, data(2, seed=4))
    assert same(model, before)
    assert same_tree(state, optimizer.state_dict())
    fit(model, optimizer, data(2, seed=4))
    assert same(model, twin)
    other.add_param_group({"params": parameters()})
    assert type(other)(parameters(), **other.defaults).param_groups[0]["rule"] == rule.name


def test_a_pickle_holds_no_workspace():
    params = parameters(((40,),) * 10)
    optimizer = make(params, loaded(L2L(layers=1, hidden=2)))
    fresh = len(pickle.dumps(optimizer))
    set_grads(params, 0)
    optimizer.step()
    state = sum(v.numel() * 4 for entries in optimizer.state.values() for v in entries.values())
    assert len(pickle.dumps(optimizer)) < fresh + state + 30_000


# ----------------------------------------------------------------------------------------- hooks


def test_step_hooks_run_in_torchs_order_and_may_replace_the_arguments():
    from torch.optim.optimizer import (
        register_optimizer_step_post_hook,
        register_optimizer_step_pre_hook,
    )

    optimizer, log = stepped(), []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: log.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: log.append("global post")),
        optimizer.register_step_pre_hook(lambda *_: log.append("pre")),
        optimizer.register_step_post_hook(lambda *_: log.append("post")),
    ]
    optimizer.step()
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert log == ["global pre", "pre", "post", "global post"]
    optimizer.register_step_pre_hook(lambda opt, *_: ((opt, lambda: torch.tensor(2.0)), {}))
    assert float(optimizer.step()) == 2.0


def test_load_hooks_see_and_change_what_is_loaded():
    optimizer, seen = stepped(), []
    saved = frozen_state(optimizer)

    def halve(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        state = copy.deepcopy(state)
        state["state"][0]["cell"] *= 0.5
        return state

    target = stepped()
    target.register_load_state_dict_pre_hook(halve)
    target.register_load_state_dict_post_hook(
        lambda opt: seen.append(next(iter(opt.state.values()))["cell"].clone())
    )
    hooks = len(target._optimizer_load_state_dict_pre_hooks)
    target.load_state_dict(saved)
    assert torch.equal(seen[0], 0.5 * saved["state"][0]["cell"])
    assert len(target._optimizer_load_state_dict_pre_hooks) == hooks
    assert len(target._optimizer_load_state_dict_post_hooks) == 1


def test_post_hooks_see_exact_state_of_bfloat16_parameters():
    params = parameters(dtype=torch.bfloat16)
    optimizer, seen = make(params), []
    set_grads(params, 0)
    optimizer.step()
    saved = frozen_state(optimizer)
    optimizer.register_load_state_dict_post_hook(
        lambda opt: seen.append(opt.state[params[0]]["cell"].clone())
    )
    optimizer.load_state_dict(saved)
    assert same(seen, [saved["state"][0]["cell"]])


def test_state_dict_hooks_run():
    optimizer, log = stepped(), []
    optimizer.register_state_dict_pre_hook(lambda _: log.append("pre"))
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "extra": 1})
    assert optimizer.state_dict()["extra"] == 1
    assert log == ["pre"]


def test_a_checkpoint_loads_under_any_default_device():
    optimizer = stepped()
    saved = copy.deepcopy(optimizer.state_dict())
    with torch.device("meta"):
        optimizer.load_state_dict(saved)
    assert same_tree(optimizer.state_dict(), saved)


def test_a_failed_load_leaves_no_hook_behind():
    optimizer = stepped()
    with pytest.raises(ValueError, match="retrained"):
        optimizer.load_state_dict(stepped(loaded(LSTM.rule, seed=1, name="retrained")).state_dict())
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    assert not optimizer._optimizer_load_state_dict_post_hooks
