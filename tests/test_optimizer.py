"""What one can ask for: public names, rules, groups, options, rates."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from small_training import (
    ADAM,
    GRU,
    LSTM,
    assert_near,
    data,
    fit,
    loaded,
    loss_of,
    make,
    mlp,
    parameters,
    same,
    set_grads,
    snapshot,
)

from learned_optim import LearnedOptimizer, load_rule, without_matrix_stage
from learned_optim.rules import L2L, Adam
from learned_optim.weights import in_memory

RULES = pytest.mark.parametrize("rule", [ADAM, LSTM, GRU], ids=["adam", "lstm", "gru"])


def test_the_package_names_what_is_public():
    import learned_optim

    public = {"LearnedOptimizer", "load_rule", "LoadedRule", "WeightsError", "WeightsUnavailable"}
    assert public <= set(vars(learned_optim))
    assert learned_optim.__version__.count(".") == 2


def test_import_loads_nothing_that_a_step_does_not_need():
    heavy = ("huggingface_hub", "learned_optim.tasks", "matplotlib", "torch.distributed.tensor")
    script = (
        "import sys, torch; before = set(sys.modules); import learned_optim; "
        f"print([name for name in {heavy!r} if name in set(sys.modules) - before])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    assert run.stdout.strip() == "[]"


# ------------------------------------------------------------------ the rule Adam is torch's Adam


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_adam_rule_equals_torchs(dtype: torch.dtype, tensor_lr: bool, weight_decay: float):
    shapes = ((4, 3), (5,), (), (5000,))
    ours, theirs = parameters(shapes, dtype), parameters(shapes, dtype)
    factor = 0.5
    optimizer = make(
        ours, ADAM, lr=torch.tensor(factor) if tensor_lr else factor, weight_decay=weight_decay
    )
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    reference = kind(theirs, lr=1e-2 * factor, weight_decay=weight_decay)
    for k in range(12):
        for params, opt in ((ours, optimizer), (theirs, reference)):
            set_grads(params, k)
            if k < 3:
                params[1].grad = None
            opt.step()
    assert_near(ours, theirs, 2e-6 if dtype == torch.float32 else 1e-7)
    assert [optimizer.state[p]["step"].item() for p in ours] == [12, 9, 12, 12]


def test_groups_have_their_own_rule_and_options():
    ours, theirs = parameters(((4, 3),) * 3), parameters(((4, 3),) * 3)
    other = loaded(Adam(learning_rate=0.3, eps=1e-3), name="other")
    groups = [
        {"params": ours[:1]},
        {"params": ours[1:2], "rule": other, "lr": 0.1},
        {"params": ours[2], "weight_decay": 0.2, "maximize": True},
    ]
    optimizer = make(groups, ADAM)
    reference = torch.optim.AdamW(
        [
            {"params": theirs[:1]},
            {"params": theirs[1:2], "lr": 0.03, "eps": 1e-3},
            {"params": theirs[2:], "weight_decay": 0.2, "maximize": True},
        ],
        lr=1e-2,
        weight_decay=0.0,
    )
    for k in range(5):
        set_grads(ours, k)
        set_grads(theirs, k)
        optimizer.step()
        reference.step()
    assert_near(ours, theirs, 3e-6)
    assert [group["rule"] for group in optimizer.param_groups] == ["adam", "other", "adam"]


def test_rules_that_differ_in_their_config_alone_do_not_mix():
    """They have the same weights, so the same sha256."""
    large = loaded(L2L(layers=1, hidden=2, scale=1.0))
    small = loaded(L2L(layers=1, hidden=2, scale=0.001))
    assert large.sha256 == small.sha256
    params = parameters(((4, 3), (4, 3)), seed=1)
    before = snapshot(params)
    optimizer = make([{"params": params[:1]}, {"params": params[1:], "rule": small}], large)
    params[0].grad, params[1].grad = torch.ones(4, 3), torch.ones(4, 3)
    optimizer.step()
    moved = [(p - b).abs().max().item() for p, b in zip(params, before, strict=True)]
    assert moved[0] == pytest.approx(1000 * moved[1], rel=1e-2)


# --------------------------------------------------------------------------------- construction


def test_wrong_parameters_are_refused_as_torch_does():
    p, q = parameters(((3, 2), (3, 2)))
    wrong: list[tuple[type[Exception], Any]] = [
        (ValueError, []),
        (TypeError, p),
        (TypeError, ["x"]),
        (TypeError, [{"params": {p}}]),
        (ValueError, [{"params": [p]}, {"params": [p]}]),
        (ValueError, [p * 2]),
        (ValueError, [("a", p), q]),
    ]
    for error, params in wrong:
        with pytest.raises(error):
            make(params)
    with pytest.warns(UserWarning, match="duplicate"):
        make([p, p])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr must be >= 0 and finite but is -1.0"),
        ({"lr": float("nan")}, "lr must be >= 0"),
        ({"lr": torch.tensor([1.0, 1.0])}, "Tensor lr must be 1-element"),
        ({"weight_decay": -0.1}, "weight_decay must be >= 0 and finite but is -0.1"),
        ({"total_steps": 0}, "total_steps must be None or an integer >= 1 and .* but is 0"),
        ({"total_steps": True}, "total_steps must be None or an integer .* but is True"),
        ({"total_steps": 2.5}, "total_steps must be None or an integer .* but is 2.5"),
        ({"lr": "1e-3"}, "lr must be >= 0 and finite but is '1e-3'"),
        ({"lr": None}, "lr must be >= 0 and finite but is None"),
        ({"weight_decay": None}, "weight_decay must be >= 0 and finite but is None"),
        ({"total_steps": float("inf")}, "total_steps must be None or an integer .* but is inf"),
        ({"total_steps": "100"}, "total_steps must be None or an integer .* but is '100'"),
        ({"maximize": "yes"}, "maximize must be one of"),
        ({"maximize": 1}, "maximize must be one of"),
        ({"fused": "yes"}, "fused must be one of"),
        ({"fused": 0}, "fused must be one of"),
    ],
)
def test_options_out_of_range_are_refused_in_the_constructor_and_in_groups(
    options: dict[str, Any], message: str
):
    p, q = parameters(((3, 2), (3, 2)))
    with pytest.raises(ValueError, match=message):
        make([p], **options)
    optimizer = make([p])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [q], **options})
    assert len(optimizer.param_groups) == 1


def test_groups_of_another_optimizer_keep_their_rule_or_are_refused():
    other = without_matrix_stage()
    old = LearnedOptimizer(parameters(), other, lr=0.5)
    again = LearnedOptimizer(old.param_groups, other)
    assert again.param_groups[0]["rule_sha256"] == other.sha256
    assert again.param_groups[0]["lr"] == 0.5
    with pytest.raises(ValueError, match=r"was run by the rule 'default' .*" + other.sha256[:8]):
        LearnedOptimizer(old.param_groups)
    group = {**old.param_groups[0], "params": parameters(), "rule": "l2l-mnist"}
    old.add_param_group(group)
    assert old.param_groups[1]["rule"] == "l2l-mnist"
    old.add_param_group({**old.param_groups[0], "params": parameters()})
    assert old.param_groups[2]["rule_sha256"] == other.sha256


def test_a_group_that_other_weights_of_one_name_ran_is_refused():
    rule = load_rule("default")
    weights = {**rule.weights, "hand.brake": 2 * rule.weights["hand.brake"]}
    other = in_memory(rule.rule, weights, name=rule.name)
    old = make(parameters(), other)
    usual = make(parameters(), rule).param_groups[0]
    assert old.param_groups[0]["rule_config"] == usual["rule_config"]
    with pytest.raises(ValueError, match=f"weights sha256 {other.sha256}"):
        LearnedOptimizer(old.param_groups)


def test_an_unknown_rule_is_refused_by_name():
    with pytest.raises(OSError, match="no-such-rule"):
        LearnedOptimizer(parameters(), "no-such-rule")


def test_fused_demands_or_explains():
    params = parameters()
    with pytest.raises(RuntimeError, match="no fused backend supports the rule 'adam'"):
        make(params, ADAM, fused=True)
    optimizer = make(params, ADAM, fused=None)
    with pytest.raises(RuntimeError, match="no fused backend supports the rule 'adam'"):
        optimizer.add_param_group({"params": parameters(), "fused": True})
    assert len(optimizer.param_groups) == 1


def test_whatever_fused_chooses_equals_the_reference():
    chosen, reference = parameters(seed=3), parameters(seed=3)
    optimizers = make(chosen, weight_decay=0.1), make(reference, weight_decay=0.1, fused=False)
    for k in range(5):
        for params, optimizer in zip((chosen, reference), optimizers, strict=True):
            set_grads(params, k)
            if k == 2:
                params[0].grad = None
            optimizer.step()
    assert_near(chosen, reference, 1e-5)


def test_groups_hold_plain_values_and_defaults_construct_the_same_again():
    params = parameters()
    optimizer = make(params, lr=0.5, total_steps=10)
    for key, value in optimizer.param_groups[0].items():
        assert key == "params" or isinstance(value, str | int | float | bool | None)
    assert set(optimizer.defaults) <= set(optimizer.param_groups[0])
    again = type(optimizer)(parameters(), **optimizer.defaults)
    assert again.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    own = {"params": parameters(), "rule": ADAM}
    for _ in range(2):
        assert make([own], lr=0.5).param_groups[0]["rule"] == "adam"
        assert own.keys() == {"params", "rule"}
    from_groups = make(optimizer.param_groups)
    assert from_groups.param_groups[0]["rule_sha256"] == LSTM.sha256


def test_repr_shows_the_groups_and_no_weights():
    text = repr(make(parameters()))
    assert "LearnedOptimizer" in text
    assert "rule: lstm" in text
    assert "tensor" not in text


def test_construction_and_steps_leave_the_world_alone():
    params = parameters()
    before = snapshot(params)

    def world() -> tuple[object, ...]:
        return (
            torch.get_rng_state().tolist(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_autocast_enabled("cpu"),
        )

    at_first = world()
    optimizer = make(params)
    assert same(params, before)
    assert all(p.grad is None for p in params)
    assert not optimizer.state
    set_grads(params, 0)
    grads = snapshot([p.grad for p in params if p.grad is not None])
    pointers, versions = [p.data_ptr() for p in params], [p._version for p in params]
    optimizer.step()
    assert world() == at_first
    assert same([p.grad for p in params if p.grad is not None], grads)
    assert [p.data_ptr() for p in params] == pointers
    assert all(p._version > v for p, v in zip(params, versions, strict=True))
    assert all(p.is_leaf and p.requires_grad for p in params)


# --------------------------------------------------------------------- lr, groups, independence


@RULES
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_lr_zero_freezes_exactly_and_lr_scales_the_step(rule: Any, tensor_lr: bool):
    def lr(value: float) -> Any:
        return torch.tensor([value]) if tensor_lr else value

    params = parameters(((4, 3),) * 3)
    groups = [{"params": [p], "lr": lr(v)} for p, v in zip(params, (1.0, 0.0, 0.25), strict=True)]
    optimizer = make(groups, rule, weight_decay=1.0)
    before = snapshot(params)
    for p in params:
        p.data.copy_(before[0])
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.equal(params[1], before[0])
    torch.testing.assert_close(params[2] - before[0], 0.25 * (params[0] - before[0]))
    assert not torch.equal(params[0], before[0])
    given = optimizer.param_groups[2]["lr"]
    assert given is groups[2]["lr"]


@RULES
def test_groups_and_their_order_do_not_matter(rule: Any):
    def run(arrange: Any) -> list[torch.Tensor]:
        params = parameters()
        optimizer = make(arrange(params), rule)
        for k in range(5):
            set_grads(params, k)
            optimizer.step()
        return snapshot(params)

    one = run(lambda p: p)
    assert_near(run(lambda p: [{"params": [q]} for q in p]), one, 1e-6)
    assert_near(run(lambda p: p[::-1]), one, 1e-6)
    assert_near(run(lambda p: [{"params": iter(p[:2])}, {"params": p[2]}]), one, 1e-6)


def test_other_optimizers_and_other_runs_do_not_interfere():
    model, twin, other = mlp(), mlp(), mlp(5)
    optimizers = make(model.parameters()), make(twin.parameters()), make(other.parameters())
    for batch in data(4):
        fit(model, optimizers[0], [batch])
        fit(other, optimizers[2], data(2, seed=9))
    fit(twin, optimizers[1], data(4))
    assert same(model, twin)


def test_the_horizon_reaches_the_rule():
    from test_eager_backend import Normalised

    params, twins = parameters(), parameters()
    rule = loaded(Normalised())
    near, far = make(params, rule, total_steps=2), make(twins, rule, total_steps=10**6)
    for k in range(2):
        set_grads(params, k)
        set_grads(twins, k)
        before = snapshot(params)
        near.step()
        far.step()
        assert same(params, before) == (k == 1)  # nothing is left to do at the horizon
    assert not same(params, twins)


def test_no_warning_and_no_graph_in_ordinary_training():
    model = mlp()
    optimizer = make(model.parameters(), ADAM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, optimizer, data(3))
    sizes = []
    for _ in range(2):
        fit(model, optimizer, data(3))
        state = [v for entries in optimizer.state.values() for v in entries.values()]
        assert not any(v.requires_grad or v.grad_fn is not None for v in state)
        sizes.append(sum(v.numel() * v.element_size() for v in state))
    assert sizes[0] == sizes[1]


def test_it_optimises():
    model = mlp()
    optimizer = make(model.parameters(), ADAM)
    batches = data(60)
    first = loss_of(model, batches[0]).item()
    fit(model, optimizer, batches)
    assert loss_of(model, batches[0]).item() < 0.5 * first
    up = mlp()
    fit(up, make(up.parameters(), ADAM, maximize=True), batches)
    assert loss_of(up, batches[0]).item() > first


def test_what_fsdp1_flattened_is_refused_by_rules_that_look_at_whole_tensors():
    flat = torch.nn.Parameter(torch.zeros(8))
    flat._fsdp_flattened = True  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(RuntimeError, match=r"'default' looks at whole tensors.*fully_shard"):
        LearnedOptimizer([flat])
    assert LearnedOptimizer([flat], LSTM).param_groups[0]["params"][0] is flat


def test_a_group_of_a_generator_serves_two_optimizers():
    model = torch.nn.Linear(3, 3)
    groups = [{"params": model.parameters()}]
    for optimizer in (LearnedOptimizer(groups), LearnedOptimizer(groups)):
        assert len(optimizer.param_groups[0]["params"]) == 2
