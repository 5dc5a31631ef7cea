"""The ablations of `default`, on problems of seconds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks import default_ablations
from learned_optim.meta_training.recipe import TaskEntry
from learned_optim.rules.hand import HAND
from learned_optim.tasks import IllConditionedQuadratic, TeacherStudent


@pytest.fixture
def small(monkeypatch):
    """Two variants on two small families, judged by ten steps."""
    tasks = (TaskEntry(TeacherStudent(width=4, depth=1)), TaskEntry(IllConditionedQuadratic(dim=3)))
    whole = replace(default_ablations.base(), tasks=tasks)
    bare = replace(whole, rule=replace(whole.rule, hidden=0))
    chosen = {"base": whole, "no coordinate level": bare, "fan-in scale, not RMS": whole}
    monkeypatch.setattr(default_ablations, "base", lambda: whole)
    monkeypatch.setattr(default_ablations, "variants", lambda: chosen)
    monkeypatch.setattr(default_ablations, "STEPS", 10)
    return chosen


def test_every_variant_changes_its_one_thing():
    whole = default_ablations.base()
    assert whole.estimator.name == "nres"
    same = [name for name, recipe in default_ablations.variants().items() if recipe == whole]
    assert same == ["base", *default_ablations.STARTS]


def test_variants_are_trained_judged_kept_and_drawn(small, tmp_path, capsys, monkeypatch):
    path = tmp_path / "default_ablations.json"
    default_ablations.measure(path, seconds=0.05)
    content = json.loads(path.read_text())
    assert list(content["variants"]) == list(small)
    for facts in content["variants"].values():
        assert facts["updates"] >= 1
        assert facts["trained"] != facts["not_trained"]
    starts = [facts["not_trained"] for facts in content["variants"].values()]
    assert starts[0] == starts[1] != starts[2]
    monkeypatch.setattr(default_ablations, "examine", None)  # nothing is run twice
    default_ablations.measure(path, seconds=0.05)
    monkeypatch.setitem(HAND, "brake", (0.5,))
    with pytest.raises(TypeError, match="not callable"):  # other constants: all is run again
        default_ablations.measure(path, seconds=0.05)
    default_ablations.show(content)
    assert "no coordinate level" in capsys.readouterr().out
    default_ablations.draw(content, path.with_suffix(".png"))
    assert path.with_suffix(".png").stat().st_size > 10_000
