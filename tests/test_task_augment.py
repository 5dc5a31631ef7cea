"""Augmentations change what they say and nothing else, alone, nested and vectorised."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from learned_optim.meta_training.recipe import RecipeError
from learned_optim.meta_training.recipe_file import parse_recipe
from learned_optim.meta_training.unroll import Runs
from learned_optim.tasks import CNN, MLPClassification, Quadratic, TeacherStudent
from learned_optim.tasks.augment import (
    AUGMENTATIONS,
    BatchSize,
    FlipSigns,
    GradientNoise,
    LabelNoise,
    LossScale,
    Reparametrise,
    WarmStart,
)

MLP = MLPClassification(dataset="digits", width=8, depth=1, batch_size=256)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def at_start(family, seed=0, split="train"):
    """Loss, gradients, parameters and batch of one run at its start."""
    task = family.sample(generator(seed))
    params, constants = task.init(generator(1))
    batch = constants | task.batch(generator(2), split)
    grads, loss = torch.func.grad_and_value(task.loss)(params, batch)
    return loss, grads, params, batch


def test_reparametrising_keeps_the_loss_and_scales_gradients_inversely_to_parameters():
    loss, grads, params, _ = at_start(MLP)
    changed_loss, changed_grads, changed, _ = at_start(Reparametrise(MLP))
    torch.testing.assert_close(changed_loss, loss)
    key = "layer0.weight"
    scale = float(params[key].sum() / changed[key].sum())
    torch.testing.assert_close(changed[key] * scale, params[key])
    torch.testing.assert_close(changed_grads[key] / scale, grads[key], rtol=1e-4, atol=1e-6)


def test_the_scales_are_log_uniform_over_the_range_and_fresh_for_each_tensor_and_run():
    task = Reparametrise(MLP).sample(generator(0))
    draws = torch.stack([task.init(generator(seed))[1]["scales0"] for seed in range(200)])
    logs = draws.log10()
    assert draws.shape == (200, 4)
    assert -3 <= float(logs.min()) < -2.9
    assert 2.9 < float(logs.max()) <= 3
    assert abs(float(logs.mean())) < 0.2
    # Two of 800 may coincide in single precision.
    assert draws.unique().numel() > 790


def test_flipping_signs_keeps_the_loss_and_flips_parameters_and_gradients_together():
    loss, grads, params, _ = at_start(MLP)
    changed_loss, changed_grads, changed, batch = at_start(FlipSigns(MLP))
    torch.testing.assert_close(changed_loss, loss)
    signs = batch["signs0.layer0.weight"]
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.2
    torch.testing.assert_close(changed["layer0.weight"] * signs, params["layer0.weight"])
    torch.testing.assert_close(changed_grads["layer0.weight"] * signs, grads["layer0.weight"])


def test_a_global_scale_is_one_for_all_tensors():
    task = Reparametrise(MLP, per_tensor=False).sample(generator(0))
    assert task.init(generator(1))[1]["scales0"].unique().numel() == 1


def test_a_scaled_loss_has_scaled_gradients():
    loss, grads, _, _ = at_start(MLP)
    changed_loss, changed_grads, _, batch = at_start(LossScale(MLP, low=10.0, high=20.0))
    factor = batch["factor0"]
    assert 10 <= float(factor) <= 20
    torch.testing.assert_close(changed_loss, factor * loss)
    torch.testing.assert_close(changed_grads["layer0.weight"], factor * grads["layer0.weight"])


def test_gradient_noise_has_its_standard_deviation_and_is_not_in_the_test_split():
    family = GradientNoise(MLP, low=0.5, high=0.5)
    _, grads, _, _ = at_start(MLP)
    _, noisy, _, _ = at_start(family)
    difference = noisy["layer0.weight"] - grads["layer0.weight"]
    assert float(difference.std()) == pytest.approx(0.5, rel=0.1)
    assert abs(float(difference.mean())) < 0.1
    assert torch.equal(at_start(family, split="test")[0], at_start(MLP, split="test")[0])


def test_a_fraction_of_the_training_labels_is_replaced():
    labels, noisy = (at_start(family)[3]["y"] for family in (MLP, LabelNoise(MLP, 0.5)))
    # A tenth of the replacements hit the right label.
    assert float((labels != noisy).float().mean()) == pytest.approx(0.45, abs=0.08)
    assert set(noisy.tolist()) <= set(range(10))
    clean = [at_start(family, split="test")[3]["y"] for family in (MLP, LabelNoise(MLP, 0.5))]
    assert torch.equal(*clean)


def test_the_batch_size_is_drawn_for_each_task_through_other_changes():
    family = BatchSize(LossScale(MLP), low=2, high=5)
    sizes = {len(family.sample(generator(seed)).batch(generator(0))["y"]) for seed in range(40)}
    assert sizes == {2, 3, 4, 5}


def test_a_warm_start_was_trained_and_can_be_drawn_again():
    cold = at_start(MLP)[0]
    family = WarmStart(MLP, low=150, high=150, other=0.0)
    warm, _, params, _ = at_start(family)
    assert float(warm) < 0.7 * float(cold)
    assert not any(value.requires_grad for value in params.values())
    for key, value in at_start(family)[2].items():
        assert torch.equal(value, params[key])


def test_with_another_teacher_a_warm_start_has_the_other_one_to_learn():
    teacher = TeacherStudent(depth=1, width=16, noise=0.0, target_scale=1.0)
    starts = {other: WarmStart(teacher, low=300, high=300, other=other) for other in (0.0, 1.0)}
    same, changed = (float(at_start(starts[other])[0]) for other in (0.0, 1.0))
    assert same < 0.5 * changed


def test_only_the_given_fraction_of_tasks_is_changed():
    family = LossScale(Quadratic(), probability=0.25)
    plain = Quadratic().sample(generator(0))
    same = sum(family.sample(generator(seed)) == plain for seed in range(400))
    assert 0.65 < same / 400 < 0.85


def test_two_changes_of_one_kind_do_not_share_their_constants():
    family = LossScale(LossScale(Quadratic()))
    loss = at_start(Quadratic())[0]
    changed, _, _, batch = at_start(family)
    assert float(batch["factor0"]) != float(batch["factor1"])
    torch.testing.assert_close(changed, batch["factor0"] * batch["factor1"] * loss)


def test_all_changes_at_once_vectorise_over_runs_and_perturbations():
    family = WarmStart(CNN(width=2, depth=2, batch_size=4), low=2, high=2)
    for wrap in (FlipSigns, LabelNoise, BatchSize, GradientNoise, LossScale, Reparametrise):
        family = wrap(family)
    task = family.sample(generator(0))
    runs = Runs(task, [1, 2], perturbations=2)
    grads, losses = runs.evaluate(runs.start(), runs.next_batch())
    alone = Runs(task, [2])
    expected, loss = alone.evaluate(alone.start(), alone.next_batch())
    torch.testing.assert_close(losses[1, 0], loss[0])
    for key, value in expected.items():
        torch.testing.assert_close(grads[key][1, 1], value[0], rtol=1e-3, atol=1e-4)


def test_a_changed_task_can_be_copied_and_pickled():
    task = Reparametrise(LossScale(MLP)).sample(generator(0))
    assert copy.deepcopy(task) == pickle.loads(pickle.dumps(task)) == task


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (LabelNoise(TeacherStudent()), "label_noise needs a classification task"),
        (BatchSize(Quadratic()), "batch_size can not be changed: QuadraticTask has none"),
    ],
)
def test_a_change_that_does_not_fit_is_refused_when_sampling(family, message):
    with pytest.raises(ValueError, match=message):
        family.sample(generator(0))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("reparametrise", {"low": 2.0, "high": 1.0}),
        ("loss_scale", {"low": 0.0}),
        ("gradient_noise", {"high": float("inf")}),
        ("batch_size", {"low": 0}),
        ("label_noise", {"fraction": 1.5}),
        ("label_noise", {"probability": -0.1}),
        ("warm_start", {"low": 0.0}),
        ("warm_start", {"other": 1.5}),
        ("warm_start", {"lr": 0.0}),
    ],
)
def test_a_value_out_of_range_is_refused(name, config):
    with pytest.raises(ValueError, match=r"expected|must be in"):
        AUGMENTATIONS[name](Quadratic(), **config)


def test_a_recipe_lists_augmentations_from_the_inside():
    entry = {
        "family": "quadratic",
        "augment": [{"name": "loss_scale", "low": 0.1}, {"name": "reparametrise"}],
    }
    table = {"name": "x", "rule": {"name": "learnable_sgd"}, "tasks": [entry]}
    expected = Reparametrise(LossScale(Quadratic(), low=0.1))
    assert parse_recipe(table).tasks[0].family == expected
    for wrong, message in (
        ([{"name": "loss_scales"}], "did you mean 'loss_scale'"),
        ([{"name": "loss_scale", "lo": 1.0}], "did you mean 'low'"),
        (["loss_scale"], "must be a list of tables"),
    ):
        with pytest.raises(RecipeError, match=message):
            parse_recipe(table | {"tasks": [entry | {"augment": wrong}]})
