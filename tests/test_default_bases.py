"""The ablation of `default`'s bases."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from benchmarks import default_bases
from learned_optim.meta_training.recipe_file import read_recipe
from learned_optim.meta_training.truncation import LogUniform
from learned_optim.meta_training.unroll import Runs
from learned_optim.rules import Default
from learned_optim.rules.hand import hand_weights
from learned_optim.tasks.finite_regression import FiniteRegressionTask


def test_the_first_variant_is_what_ships_and_each_other_differs():
    first, *others = default_bases.VARIANTS.values()
    assert first.rule == replace(Default(), hidden=0, controller=0)
    assert not first.constants
    assert all(other != first for other in others)
    assert all(f"hand.{key}" in hand_weights() for other in others for key in other.constants)
    changed = default_bases.VARIANTS["decays 0.77 and 0.97"].constants
    assert list(changed) == ["logit_beta1", "logit_beta2"]
    found = torch.tensor([*changed.values()]).sigmoid()
    torch.testing.assert_close(found, torch.tensor([0.77, 0.97]))


def test_variants_have_bases_for_other_uneven_matrices():
    shapes = ((20, 20), (64, 4), (4, 64), (64, 2), (200, 200))
    names = (default_bases.SHIPPED, "for even matrices only", "for every small matrix")
    shipped, even, every = (
        [default_bases.VARIANTS[name].pays(*shape) for shape in shapes] for name in names
    )
    assert shipped == [True, True, False, False, False]
    assert even == [True, False, False, False, False]
    assert every == [True, True, True, True, False]
    task = FiniteRegressionTask(4, 50, 1, 30, "relu", "he", 1.0, 0.3, 0.0, 8)
    variants = [default_bases.VARIANTS[name] for name in names[:2]]
    curves = [default_bases.train(variant, Runs(task, [0]), 4, None) for variant in variants]
    assert not torch.equal(*curves)


def test_draws_are_kept_and_split_by_what_is_left_of_the_loss(tmp_path, monkeypatch):
    tasks = read_recipe(default_bases.RECIPE).tasks[:1]
    recipe = replace(read_recipe(default_bases.RECIPE), tasks=tasks)
    monkeypatch.setattr(default_bases, "read_recipe", lambda _: recipe)
    monkeypatch.setattr(default_bases, "FEW", 0)
    path = tmp_path / "default_bases.json"
    default_bases.measure(path, rounds=2, steps=LogUniform(10, 20))
    content = json.loads(path.read_text(encoding="utf-8"))
    first, second = content["draws"]
    assert (first["told"], second["told"]) == (False, True)
    assert first["gains"][0] == 0
    assert any(first["gains"][1:])
    monkeypatch.setattr(default_bases, "examine", None)  # nothing is run twice
    default_bases.measure(path, rounds=2, steps=LogUniform(10, 20))
    split = default_bases.kinds([first | {"left": 0.5}, first | {"left": 0.01}])
    assert [len(draws) for draws in split.values()] == [2, 1, 1, 0]
    few = first | {"family": default_bases.FEW_INPUTS.label}
    assert [len(draws) for draws in default_bases.kinds([few, second]).values()][::3] == [1, 1]
    content["draws"] += [few, few | {"told": True}]
    default_bases.draw(content, tmp_path / "default_bases.png")
    assert (tmp_path / "default_bases.png").is_file()
    default_bases.show(content)
