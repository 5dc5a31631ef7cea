"""Losses in units of a tuned Adam's: the curves, their cache, and what training does with them."""

from __future__ import annotations

import copy
import math
import os
from typing import Any

import pytest
import torch

from learned_optim.meta_training import yardstick
from learned_optim.meta_training.baseline import adam_curves
from learned_optim.meta_training.estimators import NRES, TBPTT
from learned_optim.meta_training.meta_loss import Log, Sum
from learned_optim.meta_training.outer_loop import MetaTrainer
from learned_optim.meta_training.recipe_file import parse_recipe
from learned_optim.meta_training.truncation import Constant, LogUniform, Worker
from learned_optim.meta_training.yardstick import GRID, Normalise, Yardstick
from learned_optim.rules import L2L, Adam, LearnableSGD
from learned_optim.tasks import MnistMLP, Quadratic
from learned_optim.tasks.augment import LossScale
from learned_optim.tasks.base import TaskFamily

FAMILY = MnistMLP(hidden=4, batch_size=8, dataset="digits", init_std=0.3)
SEEDS, PATH = [1, 2, 3], ("pool", 0, 5)


def measure(folder, steps=12, floor=1e-3, family=FAMILY):
    made = Yardstick(Normalise(by="adam", floor=floor), folder=folder)
    task = family.sample(torch.Generator().manual_seed(0))
    return made, made.units(family, task, SEEDS, PATH, steps)


def test_the_curve_is_that_of_the_best_rate_for_each_number_of_steps(tmp_path):
    task = FAMILY.sample(torch.Generator())
    all_rates = adam_curves(task, SEEDS, 16, GRID)
    chosen = set()
    _, units = measure(tmp_path, floor=1e-9)
    for t in range(13):
        trailing = all_rates[t - t // 8 : t + 1].mean(0)  # (runs, rates)
        best = int(trailing.log().mean(0).argmin())
        chosen.add(best)
        torch.testing.assert_close(units[t], trailing[:, best])
    assert len(chosen) > 1, "one rate is the best at all lengths: the test shows nothing"


def test_the_curve_of_a_long_run_begins_with_that_of_a_short_one(tmp_path):
    short = measure(tmp_path / "a", steps=9)[1]
    long = measure(tmp_path / "b", steps=40)[1]
    assert short.shape == (10, 3)
    assert long.shape == (41, 3)
    assert torch.equal(long[:10], short)


def test_a_curve_is_computed_once_and_again_only_for_longer_runs(tmp_path):
    first, units = measure(tmp_path)
    task = FAMILY.sample(torch.Generator())
    assert torch.equal(first.units(FAMILY, task, SEEDS, PATH, 5), units[:6])
    again, cached = measure(tmp_path)
    assert torch.equal(cached, units)
    assert (first.computed, again.computed) == (1, 0)
    again.units(FAMILY, task, SEEDS, PATH, 16)  # 12 was rounded up to 16
    assert again.computed == 0
    again.units(FAMILY, task, SEEDS, PATH, 17)
    assert again.computed == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"family": MnistMLP(hidden=4, batch_size=9, dataset="digits", init_std=0.3)},
        {"seeds": [1, 2, 4]},
        {"path": ("pool", 0, 6)},
    ],
    ids=["family", "seeds", "path"],
)
def test_other_optimizees_have_another_curve(tmp_path, change):
    first, _ = measure(tmp_path)
    arguments = {"family": FAMILY, "seeds": SEEDS, "path": PATH, **change}
    first.units(task=arguments["family"].sample(torch.Generator()), steps=12, **arguments)
    assert first.computed == 2


def test_a_new_version_of_the_definition_computes_anew(tmp_path, monkeypatch):
    measure(tmp_path)
    monkeypatch.setattr(yardstick, "VERSION", yardstick.VERSION + 1)
    assert measure(tmp_path)[0].computed == 1


def damage_nothing(content: bytes) -> bytes:
    return content


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    return b""


def flip(content: bytes) -> bytes:
    """One bit of the last number: safetensors itself does not notice."""
    return content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]


def test_a_curve_that_is_one_step_short_is_computed_again(tmp_path):
    made, _ = measure(tmp_path, steps=16)  # a power of two, so no further steps are known
    task = FAMILY.sample(torch.Generator().manual_seed(0))
    assert made.units(FAMILY, task, SEEDS, PATH, 17).shape == (18, 3)
    assert measure(tmp_path, steps=17)[1].shape == (18, 3)


@pytest.mark.parametrize("damage", [damage_nothing, cut, empty, flip])
def test_a_torn_file_is_computed_again_and_mended(tmp_path, damage):
    _, units = measure(tmp_path)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    again, found = measure(tmp_path)
    assert torch.equal(found, units)
    assert again.computed == (damage is not damage_nothing)
    assert measure(tmp_path)[0].computed == 0


def test_a_file_of_another_key_is_not_taken_for_this_one(tmp_path):
    made, _ = measure(tmp_path)
    (file,) = tmp_path.iterdir()
    assert yardstick.read(file, next(iter(made._known))) is not None
    assert yardstick.read(file, "another") is None


def test_a_full_disk_costs_the_cache_and_nothing_else(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    _, units = measure(tmp_path / "full")
    assert not list((tmp_path / "full").iterdir())
    monkeypatch.undo()
    assert torch.equal(measure(tmp_path / "free")[1], units)


def test_the_unit_has_a_floor_and_is_the_first_loss_where_adam_diverged():
    curve = torch.tensor([[4.0, 4.0, -2.0], [1.0, math.inf, math.nan], [1e-9, math.inf, 1e-9]])
    expected = torch.tensor([[4.0, 4.0, 0.2], [1.0, 4.0, 2.0], [0.4, 4.0, 0.2]])
    torch.testing.assert_close(yardstick.floored(curve, 0.1), expected)


def workers(folder, family: TaskFamily = FAMILY, pool=3):
    """The same worker without and with the unit."""
    made = Yardstick(Normalise(by="adam", pool=pool), folder=folder)
    plain = Worker(family, 2, Constant(12), 0, 0)
    return plain, Worker(family, 2, Constant(12), 0, 0, yardstick=made)


@pytest.mark.parametrize("meta_loss", [Sum(), Log(floor=0.5)])
def test_backpropagation_differentiates_the_losses_in_their_units(tmp_path, meta_loss):
    """By central differences over the learning rate, which the units do not depend on."""
    rule = LearnableSGD(learning_rate=0.03)
    log_lr = rule.init_weights(torch.Generator())["log_lr"]
    found = []
    for shift in (0.0, 1e-2, -1e-2):
        plain, worker = workers(tmp_path, family=Quadratic(dim=3, init_std=1.0))
        estimator = TBPTT(unroll=4, second_derivatives=True)
        found.append(estimator.estimate(rule, {"log_lr": log_lr + shift}, worker, meta_loss))
    slope = (found[1].meta_loss - found[2].meta_loss) / 2e-2
    assert float(found[0].grads["log_lr"]) == pytest.approx(slope, rel=1e-2)
    raw = estimator.estimate(rule, {"log_lr": log_lr}, plain, meta_loss)
    assert abs(float(raw.grads["log_lr"]) / slope - 1) > 0.1


def test_evolution_sees_losses_in_their_units_so_that_a_scale_cancels(tmp_path):
    """Scaled losses, a rule that does not see the scale: nearly the same estimate.

    Not the same, as the unit comes from a run on other minibatches.
    """
    rule, meta_loss = Adam(learning_rate=0.01, eps=1e-20), Sum()
    weights = rule.init_weights(torch.Generator())
    found = []
    for family in (FAMILY, LossScale(FAMILY, low=1e3, high=1e3)):
        made = Yardstick(Normalise(by="adam", pool=1), folder=tmp_path)
        worker = Worker(family, 3, Constant(10), 0, 0, yardstick=made)
        NRES(unroll=5).estimate(rule, weights, worker, meta_loss)
        found.append(NRES(unroll=5).estimate(rule, weights, worker, meta_loss))
    assert found[0].meta_loss == pytest.approx(found[1].meta_loss, rel=0.1)
    assert 0.5 < found[0].meta_loss / 5 < 2
    for key, value in found[0].grads.items():
        assert float((found[1].grads[key] - value).norm()) < 0.3 * float(value.norm()), key


def test_losses_of_a_window_are_measured_at_their_own_steps(tmp_path):
    _, worker = workers(tmp_path)
    carry = worker.current(LearnableSGD())
    assert worker._units is not None
    assert worker._units.shape == (13, 2)
    for end, count in ((5, 5), (9, 4), (12, 3)):
        worker.carry = carry._replace(step=end)
        steps = range(end - count + 1, end + 1)
        expected = torch.stack([worker._units[step] for step in steps])
        assert torch.equal(worker.unit(torch.ones(count, 2)), expected)


def test_a_pool_repeats_its_tasks_with_fresh_minibatches(tmp_path):
    _, worker = workers(tmp_path, pool=2)
    rule, starts, batches = LearnableSGD(), set(), set()
    for _ in range(8):
        worker.abandon()
        carry = worker.current(rule)
        starts.add(float(carry.theta.sum()))
        batches.add(float(carry.batch["x"].sum()))
    assert len(starts) == 2
    assert len(batches) == 8
    assert worker.yardstick is not None
    assert worker.yardstick.computed == 2


def test_workers_of_a_family_share_the_pool(tmp_path):
    made = Yardstick(Normalise(by="adam", pool=1), folder=tmp_path)
    pair = [Worker(FAMILY, 2, LogUniform(4, 8), 0, i, yardstick=made) for i in range(2)]
    first, second = (worker.current(LearnableSGD()) for worker in pair)
    assert torch.equal(first.theta, second.theta)
    assert not torch.equal(first.batch["x"], second.batch["x"])
    assert made.computed == 1


def test_a_window_in_flight_keeps_its_units_in_the_checkpoint(tmp_path, monkeypatch):
    """Even if the cache is lost and the curve would come out otherwise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table = {
        "name": "x",
        "rule": {"name": "l2l", "layers": 1, "hidden": 3},
        "tasks": [{"family": "quadratic", "runs": 2}],
        "estimator": {"name": "tbptt", "unroll": 4},
        "horizon": {"name": "constant", "steps": 20},
        "normalise": {"by": "adam", "pool": 4},
        "validation": {"runs": 2, "steps": 5},
    }
    whole = MetaTrainer(parse_recipe(table))
    for _ in range(2):
        whole.step()
    assert len(list((tmp_path / "cache" / "learned_optim" / "adam_curves").iterdir())) == 1
    state = copy.deepcopy(whole.state_dict())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    resumed = MetaTrainer(parse_recipe(table))
    resumed.load_state_dict(state)
    assert not (tmp_path / "other").exists()
    for trainer in (whole, resumed):
        trainer.step()
    for key, value in whole.weights.items():
        assert torch.equal(value, resumed.weights[key])


@pytest.mark.parametrize("wrong", [{"by": "sgd"}, {"pool": 0}, {"floor": 0.0}])
def test_values_out_of_range_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=r"by must be|pool >= 1 and floor"):
        Normalise(**wrong)


def test_without_the_option_there_is_neither_unit_nor_pool(tmp_path):
    plain, _ = workers(tmp_path)
    plain.current(L2L())
    assert float(plain.unit(torch.ones(3, 2))) == 1.0
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def test_the_first_loss_as_unit_cancels_a_scale_of_1000_and_survives_a_checkpoint():
    rule, meta_loss = Adam(learning_rate=0.01, eps=1e-20), Log(floor=0.01)
    weights = rule.init_weights(torch.Generator())
    found = []
    for family in (FAMILY, LossScale(FAMILY, low=1e3, high=1e3)):
        worker = Worker(family, 3, Constant(10), 0, 0, by_start=True)
        NRES(unroll=5).estimate(rule, weights, worker, meta_loss)
        resumed = Worker(family, 3, Constant(10), 0, 0, by_start=True)
        resumed.load_state_dict(worker.state_dict(), rule)
        found.append(NRES(unroll=5).estimate(rule, weights, resumed, meta_loss))
    # Not the same: the scale is drawn too, so the minibatches differ.
    assert found[0].meta_loss == pytest.approx(found[1].meta_loss, abs=0.05)
