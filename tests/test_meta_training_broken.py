"""Losses without a finite value: none ruins the meta-parameters, none is exported as a rule."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from learned_optim import meta_training
from learned_optim.meta_training import checkpoint
from learned_optim.meta_training.outer_loop import MetaTrainer
from learned_optim.meta_training.recipe_file import parse_recipe
from learned_optim.meta_training.validation import Result
from learned_optim.tasks.quadratic import Quadratic

TABLE: dict[str, Any] = {
    "name": "x",
    "rule": {"name": "learnable_sgd"},
    "tasks": [{"family": "quadratic", "dim": 3}],
    "validation": {"runs": 2, "steps": 4},
}


def test_a_meta_gradient_that_is_not_finite_makes_no_step_and_is_told(monkeypatch):
    trainer = MetaTrainer(parse_recipe(TABLE))
    before = trainer.snapshot()
    monkeypatch.setattr(
        trainer, "_gradient", lambda _: [torch.full_like(w, math.inf) for w in before.values()]
    )
    trainer.step()
    assert trainer.last["skipped"] == 1
    assert all(torch.equal(value, before[key]) for key, value in trainer.weights.items())
    monkeypatch.undo()
    trainer.step()
    assert trainer.last["skipped"] == 0
    assert any(not torch.equal(value, before[key]) for key, value in trainer.weights.items())


def test_a_score_of_logarithms_is_infinite_for_negative_losses(monkeypatch):
    task = type(Quadratic(dim=3).sample(torch.Generator()))
    kept = task.loss
    monkeypatch.setattr(task, "loss", lambda *args: kept(*args) - 1e4)
    validation = TABLE["validation"] | {"score": "log_adam"}
    assert MetaTrainer(parse_recipe(TABLE | {"validation": validation})).validate()["score"] == (
        math.inf
    )


def test_of_a_score_of_logarithms_no_optimizee_decides():
    validation = TABLE["validation"] | {"score": "log_adam"}
    validator = MetaTrainer(parse_recipe(TABLE | {"validation": validation})).validator
    validator._adam[0, 4] = torch.ones(2)
    for final, score in (([1e30, 1.0], 5.0), ([0.0, 1.0], -5.0), ([math.e, 1.0], 0.5)):
        assert float(validator._log_ratio(torch.tensor(final), 0, 4)) == pytest.approx(score)


def test_a_score_is_of_every_family_at_every_length():
    tasks = [{"family": "quadratic"}, {"family": "rosenbrock"}]
    validation = TABLE["validation"] | {"lengths": [1, 3]}
    trainer = MetaTrainer(parse_recipe(TABLE | {"tasks": tasks, "validation": validation}))
    row = trainer.validate()
    names = ("quadratic_0@4", "quadratic_0@12", "rosenbrock_1@4", "rosenbrock_1@12")
    assert {key for key in row if key.endswith("/value")} == {f"{name}/value" for name in names}
    values = [row[f"{name}/value"] for name in names]
    assert len(set(values)) == 4
    assert row["score"] == pytest.approx(sum(values) / 4)


@pytest.mark.parametrize("worst", [0.0, 1.0])
def test_a_score_is_never_nan(worst):
    validation = TABLE["validation"] | {"worst": worst}
    validator = MetaTrainer(parse_recipe(TABLE | {"validation": validation})).validator
    curve = torch.zeros(5, 2)
    assert validator.score([Result(0, 4, curve, 1.0), Result(0, 4, curve, math.inf)]) == math.inf
    assert validator.score([Result(0, 4, curve, 1.0), Result(0, 4, curve, 3.0)]) == 2 + 3 * worst


def recipe(folder: Path, rate: float) -> Path:
    """A rule that diverges at its first rate, and at a rate of the outer loop that is too large."""
    path = folder / "recipe.toml"
    path.write_text(
        f"""
        name = "x"
        [rule]
        name = "learnable_sgd"
        learning_rate = {rate}
        [[tasks]]
        family = "quadratic"
        [outer]
        steps = 2
        lr = 100.0
        [validation]
        every = 1
        runs = 2
        steps = 100
        """
    )
    return path


def test_a_run_without_a_finite_validation_exports_nothing_and_says_why(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(checkpoint.CheckpointError, match=r"no validation had a finite score.*Mend"):
        meta_training.run(recipe(tmp_path, 1e3), output=out, progress=False)
    assert (out / "checkpoint.pt").exists()
    assert not (out / "model.safetensors").exists()


def test_the_metrics_of_a_run_that_diverged_later_are_json(tmp_path):
    def refuse(constant: str) -> Tensor:
        raise AssertionError(constant)

    meta_training.run(recipe(tmp_path, 1e-3), output=tmp_path / "out", progress=False)
    text = (tmp_path / "out" / "metrics.json").read_text()
    history = json.loads(text, parse_constant=refuse)["validation"]["history"]
    assert [row["score"] is None for row in history] == [False, True, True]
