"""The rule of two parts: as one, split in two, and routed part by part in meta-training."""

from __future__ import annotations

import pytest
import torch

from learned_optim.meta_training.by_part import Routing
from learned_optim.meta_training.estimators.tbptt import TBPTT
from learned_optim.meta_training.meta_loss import Sum
from learned_optim.meta_training.outer_loop import MetaTrainer
from learned_optim.meta_training.recipe_file import parse_recipe
from learned_optim.meta_training.truncation import Constant, Worker
from learned_optim.meta_training.unroll import Runs, advance, begin
from learned_optim.optimizer import LearnedOptimizer
from learned_optim.rules import L2L, PARTS, ByLayer
from learned_optim.tasks import CifarConv
from learned_optim.weights import in_memory, load_folder, save_folder

FAMILY = CifarConv(dataset="digits", batch_size=8, channels=3, hidden=4)
SHAPES = [(2, 3, 2, 2), (5,), (3, 2, 1), (4, 3), (), (2, 2, 2)]
SIZES = [24, 5, 6, 12, 1, 8]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def rule():
    return ByLayer(layers=1, hidden=4)


@pytest.fixture(scope="module")
def weights(rule):
    # A head of full size, so that steps are not lost in rounding.
    drawn = rule.init_weights(generator(1))
    return {key: 30 * value if "head" in key else value for key, value in drawn.items()}


def test_convolutions_are_one_part_and_everything_else_the_other():
    found = [ByLayer.part_of(shape) for shape in SHAPES]
    assert found == ["conv", "rest", "conv", "rest", "rest", "conv"]


def test_weights_split_and_join(rule, weights):
    parts = rule.split(weights)
    assert parts.keys() == set(PARTS)
    assert {key: value.shape for key, value in parts["conv"].items()} == rule.part.weight_shapes()
    joined = rule.joined(parts)
    assert list(joined) == list(weights)
    assert all(torch.equal(joined[key], weights[key]) for key in weights)
    assert not torch.equal(parts["conv"]["cell.0.w_ih"], parts["rest"]["cell.0.w_ih"])


def test_routing_takes_each_coordinate_once_and_puts_it_back(rule):
    routing = Routing(rule, SHAPES, SIZES)
    joined = torch.arange(2 * sum(SIZES)).view(2, -1)
    taken = {part: routing.take(joined, part) for part in PARTS}
    assert taken["conv"].shape == (2, 38)
    assert taken["conv"][0, [0, 23, 24, 29, 30]].tolist() == [0, 23, 29, 34, 48]
    assert torch.equal(routing.put(taken), joined)


def test_a_network_without_convolutions_has_an_empty_part(rule):
    routing = Routing(rule, [(3,), (2, 2)], [3, 4])
    joined = torch.arange(7)
    assert routing.take(joined, "conv").numel() == 0
    assert torch.equal(routing.put({part: routing.take(joined, part) for part in PARTS}), joined)


def test_one_optimizer_equals_two_param_groups_with_the_halves(rule, weights):
    whole = in_memory(rule, weights, name="whole")
    halves = {
        part: in_memory(rule.part, half, name=part) for part, half in rule.split(weights).items()
    }
    task = FAMILY.sample(generator())
    runs = []
    for split in (False, True):
        params = {key: value.requires_grad_() for key, value in task.init(generator(2))[0].items()}
        groups = [
            {
                "params": [p for p in params.values() if rule.part_of(tuple(p.shape)) == part],
                "rule": halves[part] if split else whole,
            }
            for part in PARTS
        ]
        optimizer = LearnedOptimizer(groups)
        source = generator(3)
        for _ in range(3):
            optimizer.zero_grad()
            task.loss(params, task.batch(source)).backward()
            optimizer.step()
        runs.append(params)
    moved = task.init(generator(2))[0]
    for key in moved:
        assert not torch.equal(runs[0][key], moved[key])
        torch.testing.assert_close(runs[0][key], runs[1][key], rtol=1e-4, atol=1e-5)


def test_meta_training_unrolls_the_rule_that_the_optimizer_runs(rule, weights):
    task, loaded = FAMILY.sample(generator()), in_memory(rule, weights, name="whole")
    runs = Runs(task, [7])
    layout, carry = begin(rule, runs)
    source = generator(7)
    params = {key: value.requires_grad_() for key, value in task.init(source)[0].items()}
    optimizer = LearnedOptimizer(params.values(), rule=loaded)
    for _ in range(4):
        optimizer.zero_grad()
        loss = task.loss(params, task.batch(source))
        loss.backward()
        torch.testing.assert_close(carry.loss[0], loss.detach(), rtol=1e-4, atol=1e-5)
        optimizer.step()
        with torch.no_grad():
            carry = advance(rule, weights, runs, layout, carry)


@pytest.mark.parametrize("second_derivatives", [False, True])
def test_the_window_gradient_is_that_of_the_unrolled_loop(rule, weights, second_derivatives):
    worker = Worker(FAMILY, 2, Constant(6), seed=0, index=0)
    estimator = TBPTT(unroll=3, second_derivatives=second_derivatives)
    found = estimator.estimate(rule, weights, worker, Sum())

    same = Worker(FAMILY, 2, Constant(6), seed=0, index=0)
    leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
    carry, total = same.current(rule), torch.zeros(())
    for _ in range(3):
        carry = advance(
            rule, leaves, same.runs, same.layout, carry, second_derivatives=second_derivatives
        )
        total = total + carry.loss.mean()
    expected = torch.autograd.grad(total, list(leaves.values()))
    assert found.meta_loss == pytest.approx(total.item(), rel=1e-4)
    for (key, value), reference in zip(found.grads.items(), expected, strict=True):
        scale = float(reference.abs().max())
        assert scale > 0, key
        torch.testing.assert_close(value, reference, rtol=1e-2, atol=1e-2 * scale)


def test_both_parts_may_start_at_the_weights_of_one_rule():
    table = {
        "name": "x",
        "rule": {"name": "by_layer", "layers": 1, "hidden": 3},
        "tasks": [{"family": "cifar_conv", "dataset": "digits", "batch_size": 8}],
    }
    trainer = MetaTrainer(parse_recipe(table))
    part = L2L(layers=1, hidden=3)
    start = part.init_weights(generator(9))
    trainer.start_from(start)
    for part_weights in trainer.rule.split(trainer.weights).values():  # type: ignore[attr-defined]
        assert all(torch.equal(part_weights[key], value) for key, value in start.items())
    with pytest.raises(ValueError, match="belong to another rule"):
        trainer.start_from(L2L(layers=2, hidden=3).init_weights(generator(9)))


def test_it_is_saved_and_loaded_as_one_file(rule, weights, tmp_path):
    save_folder(tmp_path, rule, weights, name="two")
    loaded = load_folder(tmp_path)
    assert loaded.rule == rule
    assert all(torch.equal(loaded.weights[key], weights[key]) for key in weights)
