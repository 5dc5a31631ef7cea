"""Training can sample nothing of the meta-test set, and the three sets share nothing."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from learned_optim.meta_training.recipe import RecipeError, TaskEntry
from learned_optim.meta_training.recipe_file import parse_recipe
from learned_optim.tasks import (
    CNN,
    TASK_FAMILIES,
    CifarConv,
    MLPClassification,
    RNNLanguageModel,
)
from learned_optim.tasks.augment import LossScale, Reparametrise
from learned_optim.tasks.axes import choices
from learned_optim.tasks.splits import (
    HELD_OUT,
    META_TEST,
    META_TRAIN,
    META_VALIDATION,
    PAPER_ONLY,
)
from learned_optim.tasks.splits import check_trainable as check

SETS = {"train": META_TRAIN, "validation": META_VALIDATION, "test": META_TEST}


def recipe(entry):
    return {"name": "x", "rule": {"name": "learnable_sgd"}, "tasks": [entry]}


def overlap(left, right):
    """Whether two families can sample the same structure."""
    return type(left) is type(right) and all(
        set(choices(left, field.name)) & set(choices(right, field.name))
        for field in dataclasses.fields(left)
    )


@pytest.mark.parametrize("name", META_TEST)
def test_no_recipe_can_train_on_an_entry_of_the_meta_test_set(name):
    family = META_TEST[name]
    values = {field.name: getattr(family, field.name) for field in dataclasses.fields(family)}
    lists = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
    with pytest.raises(RecipeError, match="tasks of the meta-test set"):
        parse_recipe(recipe({"family": family.name, **lists}))
    augment = [{"name": "loss_scale"}, {"name": "reparametrise"}]
    with pytest.raises(RecipeError, match="tasks of the meta-test set"):
        parse_recipe(recipe({"family": family.name, **lists, "augment": augment}))


@pytest.mark.parametrize(
    "family",
    [
        CNN(dataset=["digits", "cifar10"]),
        CNN(dataset="cifar10", width=3),
        MLPClassification(dataset=["clusters", "mnist", "cifar10"]),
        RNNLanguageModel(dataset=["generated", "tinyshakespeare"], width=5),
        Reparametrise(LossScale(CNN(dataset="cifar10"))),
        *(TASK_FAMILIES[str(held_out.family)]() for held_out in HELD_OUT if held_out.field is None),
    ],
    ids=lambda family: family.name,
)
def test_a_family_that_may_sample_what_is_held_out_is_refused_whatever_else_it_samples(family):
    with pytest.raises(ValueError, match="is held out"):
        TaskEntry(family)


@pytest.mark.parametrize("name", [*META_TRAIN, *META_VALIDATION])
def test_the_training_and_validation_sets_are_trainable(name):
    check((META_TRAIN | META_VALIDATION)[name])


@pytest.mark.parametrize("pair", list(itertools.combinations(SETS, 2)), ids="-".join)
def test_no_structure_is_in_two_sets(pair):
    for left, right in itertools.product(*(SETS[name].values() for name in pair)):
        assert not overlap(left, right), (left, right)


def test_the_overlap_that_the_sets_are_checked_for_is_seen():
    assert overlap(CNN(), CNN(width=[8, 100]))
    assert not overlap(CNN(), CNN(width=100))


def test_every_family_is_used_by_some_set():
    used = {family.name for entries in SETS.values() for family in entries.values()}
    assert used >= TASK_FAMILIES.keys() - {"mnist_mlp", "own_model", *PAPER_ONLY}
    assert used.isdisjoint(PAPER_ONLY)


def test_the_papers_own_families_may_be_trained_on_but_not_mixed_with_others():
    check(CifarConv())
    paper, other = {"family": "cifar_conv"}, {"family": "cnn"}
    assert parse_recipe(recipe(paper)).tasks[0].family == CifarConv()
    for tasks in ([paper, other], [{**paper, "augment": [{"name": "loss_scale"}]}, other]):
        with pytest.raises(RecipeError, match=r"\['cifar_conv'\] show data of the meta-test set"):
            parse_recipe({**recipe(paper), "tasks": tasks})


@pytest.mark.parametrize("name", [*META_TRAIN, *META_VALIDATION])
def test_the_entries_for_training_and_validation_can_be_sampled(name):
    task = (META_TRAIN | META_VALIDATION)[name].sample(torch.Generator().manual_seed(0))
    params, _ = task.init(torch.Generator().manual_seed(1))
    assert params


def test_the_lists_of_a_recipe_become_axes():
    parsed = parse_recipe(recipe({"family": "cnn", "width": [2, 3], "runs": 4}))
    assert parsed.tasks[0].family == CNN(width=(2, 3))
    with pytest.raises(RecipeError, match=r"width must be of type int, or a list of it"):
        parse_recipe(recipe({"family": "cnn", "width": ["wide"]}))
