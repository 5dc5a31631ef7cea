"""What hindsight gains, on problems of seconds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import default_headroom
from benchmarks.default_ablations import CLIP
from benchmarks.readme_tables import table_of
from learned_optim.meta_training.recipe import TaskEntry
from learned_optim.meta_training.recipe_file import read_recipe
from learned_optim.meta_training.truncation import LogUniform
from learned_optim.rules.hand import HAND, hand_weights
from learned_optim.tasks import IllConditionedQuadratic, TeacherStudent


def test_a_setting_changes_its_constants_and_no_others():
    start, found = hand_weights(), default_headroom.weights()
    assert {key: value.shape[1:] for key, value in found.items()} == {
        key: value.shape for key, value in start.items()
    }
    for row, change in enumerate(default_headroom.SETTINGS.values()):
        moved = {key for key, value in found.items() if not torch.equal(value[row], start[key])}
        assert moved == {f"hand.{key}" for key in change}


def test_gains_are_ratios_to_the_first_setting_and_no_number_is_the_worst():
    ends = torch.tensor([[1.0, 0.5, float("nan"), 1e-9]])
    curve = torch.stack((torch.ones(1, 4), *[ends] * 10))
    (row,) = default_headroom.gains(curve)
    assert row[0] == 0
    assert row[1] == pytest.approx(-0.693, abs=1e-3)
    assert row[2] == CLIP
    assert row[3] == -CLIP


def test_hindsight_chooses_on_one_run_and_is_judged_on_the_other():
    found = torch.tensor([[0.0, -1.0, 0.3], [0.0, 0.4, -0.2]])
    assert default_headroom.with_hindsight(found, [0, 1, 2]) == pytest.approx((0.4 + 0.3) / 2)
    assert default_headroom.with_hindsight(found, [0, 1]) == pytest.approx((0.4 + 0.0) / 2)
    assert default_headroom.with_hindsight(found, [0]) == 0


def test_draws_are_measured_kept_shown_and_drawn(tmp_path, capsys, monkeypatch):
    tasks = (TaskEntry(TeacherStudent(width=4, depth=1)), TaskEntry(IllConditionedQuadratic(dim=3)))
    recipe = replace(read_recipe(default_headroom.RECIPE), tasks=tasks)
    monkeypatch.setattr(default_headroom, "read_recipe", lambda _: recipe)
    path = tmp_path / "default_headroom.json"
    default_headroom.measure(path, rounds=2, steps=LogUniform(10, 20))
    content = json.loads(path.read_text())
    assert [draw["told"] for draw in content["draws"]] == [False, False, True, True]
    for draw in content["draws"]:
        rows = torch.tensor(draw["gains"])
        assert rows.shape == (default_headroom.RUNS, len(default_headroom.SETTINGS))
        assert not rows[:, 0].any()
        assert rows[:, 1:].any()
    monkeypatch.setattr(default_headroom, "examine", None)  # nothing is run twice
    default_headroom.measure(path, rounds=2, steps=LogUniform(10, 20))
    monkeypatch.setitem(HAND, "brake", (0.5,))
    with pytest.raises(TypeError, match="not callable"):  # other constants: all is run again
        default_headroom.measure(path, rounds=2, steps=LogUniform(10, 20))
    default_headroom.show(content)
    assert "matrix stage" in capsys.readouterr().out
    rows = table_of(content).splitlines()
    assert "4 draws" in rows[0]
    assert len(rows) == 2 + len(default_headroom.AXES) + 1
    assert "-0.00" not in table_of(content)
    default_headroom.draw(content, path.with_suffix(".png"))
    assert path.with_suffix(".png").stat().st_size > 10_000
