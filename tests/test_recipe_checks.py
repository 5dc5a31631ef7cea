"""What a recipe may not hold is refused as it is read, not after hours of meta-training."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from learned_optim.meta_training.outer_loop import MetaTrainer
from learned_optim.meta_training.recipe import OPTIMIZERS, RecipeError
from learned_optim.meta_training.recipe_file import parse_recipe, read_recipe
from learned_optim.meta_training.truncation import HeavyTailed

TABLE: dict[str, Any] = {
    "name": "x",
    "rule": {"name": "learnable_sgd"},
    "tasks": [{"family": "quadratic", "dim": 3}],
    "horizon": {"name": "constant", "steps": 3},
}


def table(section: str, **values: Any) -> dict[str, Any]:
    """`TABLE` with such a section."""
    return copy.deepcopy(TABLE) | {section: values}


@pytest.mark.parametrize("name", ["", "a b", "\u00e9", "a/b", "../x", 'a"b', "x" * 300])
def test_a_name_that_no_rule_may_have_is_refused(name):
    with pytest.raises(RecipeError, match="the trained rule: name must be 1 to 96 letters"):
        parse_recipe(TABLE | {"name": name})


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("validation", {"lengths": [1.0, math.nan]}, r"\[validation\] lengths\[1\] .* but is nan"),
        (
            "validation",
            {"lengths": 1.0},
            r"lengths must be a list, each of type float, but is 1\.0",
        ),
        ("validation", {"lengths": [True]}, r"lengths\[0\] must be of type float but is True"),
        ("curriculum", {"factors": [1, math.inf]}, r"factors\[1\] must be a number below 1e\+30"),
        (
            "curriculum",
            {"factors": "12"},
            r"factors must be a list, each of type float, but is '12'",
        ),
        ("estimator", {"name": "es", "only": "log"}, r"only must be a list, each of type str"),
        ("estimator", {"name": "es", "only": [1]}, r"only\[0\] must be of type str but is 1"),
        ("estimator", {"name": "es", "late_told": math.nan}, "late_told must be a number below"),
        ("estimator", {"name": "es", "late_told": True}, "late_told must be of type float but is"),
        (
            "estimator",
            {"name": "es", "late_told": "x"},
            "late_told must be of type float but is 'x'",
        ),
        (
            "outer",
            {"steps": 10**400},
            r"steps must be a number below 4\.6e\+18 in size but is 1000",
        ),
        ("outer", {"lr": 1e290}, r"lr must be a number below 1e\+30 in size but is 1e\+290"),
    ],
)
def test_a_value_is_checked_in_lists_and_optional_fields_too(section, values, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(table(section, **values))


def test_what_is_missing_is_named():
    with pytest.raises(RecipeError, match=r"\[recipe\] is missing rule, tasks, which"):
        parse_recipe({"name": "x"})


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path):
    text = 'name = "x"\n[rule]\nname = "adam"\n[[tasks]]\nfamily = "quadratic"\n'
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8-sig")
    assert read_recipe(tmp_path / "recipe.toml").name == "x"


def test_an_integer_too_long_to_read_is_a_clear_error(tmp_path):
    (tmp_path / "recipe.toml").write_text("seed = 1" + "0" * 5000)
    with pytest.raises(RecipeError, match="not valid TOML"):
        read_recipe(tmp_path / "recipe.toml")


@pytest.mark.parametrize("name", ["LBFGS", "Optimizer", "Muon", "SparseAdam", "lr_scheduler"])
def test_an_outer_optimizer_that_cannot_train_a_rule_is_refused(name):
    with pytest.raises(RecipeError, match=f"one of .*AdamW.*, but is '{name}'"):
        parse_recipe(table("outer", optimizer=name))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_outer_optimizer_that_is_let_through_makes_steps(name):
    trainer = MetaTrainer(parse_recipe(table("outer", optimizer=name, lr=0.1)))
    before = trainer.snapshot()
    for _ in range(2):
        trainer.step()
    assert all(value.isfinite().all() for value in trainer.weights.values())
    assert any(not torch.equal(value, before[key]) for key, value in trainer.weights.items())


def test_a_tail_too_heavy_for_a_float_is_cut_like_any_other():
    rng = torch.Generator().manual_seed(0)
    drawn = [HeavyTailed(low=1, high=3, tail=0.001).sample(rng) for _ in range(200)]
    assert set(drawn) <= {1, 2, 3}
    assert drawn.count(3) > 190
