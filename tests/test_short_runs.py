"""The benchmark of short runs, on two small problems."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks import short_runs
from benchmarks.default_ablations import log_ratios
from benchmarks.general.items import Item
from benchmarks.readme_tables import table_of
from learned_optim.tasks import IllConditionedQuadratic, TeacherStudent


def test_short_runs_are_measured_averaged_shown_and_drawn(tmp_path, monkeypatch, capsys):
    families = {"one": TeacherStudent(width=4, depth=1), "two": IllConditionedQuadratic(dim=3)}
    monkeypatch.setattr(short_runs, "META_VALIDATION", families)
    items = (Item("three", TeacherStudent(width=3, depth=1), 500),)
    monkeypatch.setattr(short_runs, "SPLITS", {"fine_tuning": items})
    monkeypatch.setattr(short_runs, "LENGTHS", (2, 5))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    path = tmp_path / "short_runs.json"
    short_runs.measure(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["lengths"].keys() == {"2", "5"}
    for key, names in {"lengths": families.keys(), "fine_tuning": {"three"}}.items():
        for problems in content[key].values():
            assert problems.keys() == names
            for facts in problems.values():
                assert all(0.1 <= facts[entry] <= 10 for entry in short_runs.ENTRIES)
                assert facts["adam_rate"] in short_runs.RATES
    short_runs.show(content)
    assert "geometric mean" in capsys.readouterr().out
    table = table_of(content)
    assert "5 steps" in table
    assert "fine-tuning, `total_steps` told" in table
    short_runs.draw(content, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_the_mean_is_geometric():
    problems = {"a": {"with": 0.5}, "b": {"with": 8.0}}
    assert short_runs.mean(problems, "with") == pytest.approx(2.0)


def test_labels_keep_their_order_and_a_distance():
    places = short_runs.apart({"a": 1.01, "b": 1.0, "c": 5.0}, factor=1.5)
    assert places == {"b": 1.0, "a": 1.5, "c": 5.0}


def test_what_is_no_number_counts_as_the_worst():
    ends = torch.tensor([math.nan, math.inf, 0.0, 2.0])
    curve = torch.stack((torch.zeros(4), ends))
    ratios = log_ratios(curve, torch.ones(4), 0.5).exp()
    assert ratios.tolist() == pytest.approx([10, 10, 0.1, 2.0])
