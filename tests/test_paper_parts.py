"""CIFAR and neural art: comparisons that are taken up again where they ended."""

from __future__ import annotations

import argparse
import dataclasses
import json

import pytest
import torch

from benchmarks.baselines import BASELINES
from benchmarks.learned import Learned
from benchmarks.paper import cifar, neural_art, parts
from benchmarks.paper.parts import Contest, content_of, seconds_of
from benchmarks.results import write_json
from benchmarks.runs import Problem, run
from benchmarks.tuning import Grid
from learned_optim.rules import L2L, ByLayer
from learned_optim.tasks import CifarConv, NeuralArt, Quadratic
from learned_optim.weights import in_memory

GRID = Grid(dict.fromkeys(BASELINES, (-3.0, -2.0)), per_decade=2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def rule():
    config = L2L(hidden=4, layers=1)
    return in_memory(config, config.init_weights(generator(3)), name="small")


def contest(**changes):
    task = Quadratic(dim=3).sample(generator())
    small = Contest("small", "Small", task, GRID, 4, 2, test_runs=3, validation_runs=2)
    return dataclasses.replace(small, **changes)


def test_a_contest_has_every_entry_and_its_tail_as_the_end(rule, tmp_path):
    result = contest().compare({"learned": rule}, tmp_path)
    assert result["entries"].keys() == {*BASELINES, "learned"}
    losses = run(Problem(contest().task, 3, 4, "test", 1), lambda: Learned(rule)).losses[:, 0]
    final = result["metrics"]["final"]["entries"]["learned"]
    assert final["mean"] == pytest.approx(losses[:, -2:].mean().item(), rel=1e-5)
    best = result["metrics"]["final"]["best_baseline"]
    assert final["ratio"]["mean"] == pytest.approx(
        final["mean"] / result["metrics"]["final"]["entries"][best]["mean"]
    )
    for name in BASELINES:
        assert result["entries"][name]["rate"] in GRID.rates(name)


def test_what_is_finished_is_not_run_again(rule, tmp_path, monkeypatch):
    first = contest().compare({"learned": rule}, tmp_path)
    assert seconds_of(tmp_path) > 0
    ran = []
    original = parts.run
    monkeypatch.setattr(parts, "run", lambda *a, **k: ran.append(a) or original(*a, **k))
    assert contest().compare({"learned": rule}, tmp_path) == first
    assert ran == []
    contest(test_runs=4).compare({"learned": rule}, tmp_path)
    assert len(ran) == len(BASELINES) + 1
    next(iter(tmp_path.glob("small-test-learned-0-*"))).unlink()
    contest().compare({"learned": rule}, tmp_path)
    assert len(ran) == len(BASELINES) + 2


def test_other_weights_or_another_task_are_run_again(rule, tmp_path, monkeypatch):
    contest().compare({"learned": rule}, tmp_path)
    ran = []
    original = parts.run
    monkeypatch.setattr(parts, "run", lambda *a, **k: ran.append(a) or original(*a, **k))
    other = in_memory(rule.rule, rule.rule.init_weights(generator(4)), name="small")
    contest().compare({"learned": other}, tmp_path)
    assert len(ran) == 3
    contest(task=Quadratic(dim=4).sample(generator())).compare({}, tmp_path)
    assert len(ran) == 3 + (2 + 3) * len(BASELINES)


def test_cases_of_the_same_weights_stay_in_the_file_in_order(rule, tmp_path):
    path, rules = tmp_path / "a.json", {"learned": rule}
    write_json(path, content_of(path, "two", {"x": 1}, ["one", "two"], rules, tmp_path))
    content = content_of(path, "one", {"x": 2}, ["one", "two"], rules, tmp_path)
    assert list(content["cases"]) == ["one", "two"]
    assert content["weights_sha256"] == {"learned": rule.sha256}
    assert list(content_of(path, "one", {}, ["one", "two"], {}, tmp_path)["cases"]) == ["one"]


def test_a_rule_of_two_parts_steps_as_one_optimizer_with_two_groups():
    config = ByLayer(layers=1, hidden=4)
    loaded = in_memory(config, config.init_weights(generator(1)), name="two")
    task = CifarConv(dataset="digits", batch_size=8, channels=3, hidden=4).sample(generator())
    stepper = Learned(loaded)
    losses = run(Problem(task, 1, 3, "test", 1), lambda: stepper).losses
    assert stepper._optimizer is not None
    assert [group["rule"] for group in stepper._optimizer.param_groups] == ["two-conv", "two-rest"]
    assert losses.isfinite().all()


def test_the_cases_are_those_of_the_paper():
    tasks = {name: cifar.task_of(name) for name in cifar.CASES}
    labels = {name: task.labels for name, task in tasks.items()}  # type: ignore[attr-defined]
    assert labels.pop("cifar_10_128") == labels.pop("cifar_10_long") == "all"
    assert tasks["cifar_10_128"].batch_size == 128  # type: ignore[attr-defined]
    assert labels == {"cifar_10": "all", "cifar_5": "first_five", "cifar_2": "first_two"}
    assert cifar.GRID.per_decade >= 4
    assert cifar.TEST_RUNS >= 20
    cases = neural_art.CASES
    assert (cases["new_content"].style, cases["new_content"].size) == ("starry_night_crop", 64)
    assert (cases["new_style"].style, cases["large"].size) == ("the_scream", 128)
    trained = NeuralArt()
    assert "golden_gate" not in trained.content
    assert trained.style == "starry_night_crop"


def test_the_commands_write_json_and_pictures(rule, tmp_path, monkeypatch, capsys):
    small = argparse.Namespace(output=tmp_path, redraw=False, only=["one"], work=tmp_path / "work")
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self: small)
    for module in (cifar, neural_art):
        monkeypatch.setattr(module, "contest", lambda name: contest())
        monkeypatch.setattr(module, "load_folder", lambda _: rule)
    monkeypatch.setattr(cifar, "CASES", {"one": cifar.Case("One", "all")})
    monkeypatch.setattr(neural_art, "CASES", {"one": neural_art.Art("one", "stripes", 16, 2)})
    monkeypatch.setattr(neural_art, "STEPS", 3)
    family = NeuralArt(content="waves", style="stripes", size=16, whole=True)
    monkeypatch.setattr(
        neural_art.Art, "task", lambda self, *, whole=False: family.sample(generator())
    )
    monkeypatch.setattr(neural_art, "photograph", lambda _: torch.zeros(3, 20, 20))
    cifar.main()
    neural_art.main()
    for name in ("paper_cifar", "paper_neural_art"):
        assert list(json.loads((tmp_path / f"{name}.json").read_text())["cases"]) == ["one"]
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    assert (tmp_path / "paper_neural_art_gallery.png").stat().st_size > 2000
    assert "Small, 4 steps" in capsys.readouterr().out
