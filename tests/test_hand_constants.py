"""The choice of the hand rule's constants: the measure, and going on where it stopped."""

from __future__ import annotations

import json

import torch

from benchmarks import hand_constants
from learned_optim.rules.hand import HAND, hand_weights
from learned_optim.tasks import SoftmaxRegression, TeacherStudent
from learned_optim.tasks.splits import check_trainable


def small(monkeypatch):
    families = (TeacherStudent(width=8, depth=1), SoftmaxRegression(dataset="clusters"))
    monkeypatch.setattr(hand_constants, "FAMILIES", families)
    monkeypatch.setattr(hand_constants, "STEPS", 12)
    monkeypatch.setattr(hand_constants, "CANDIDATES", 6)


def test_a_point_and_its_weights_are_the_same_numbers():
    weights = hand_weights()
    point = hand_constants.as_point(weights)
    assert point.shape == (sum(len(value) for value in HAND.values()),)
    for key, value in hand_constants.as_weights(point[None]).items():
        torch.testing.assert_close(value[0], weights[key])


def test_a_broken_candidate_scores_the_cap_and_a_good_one_less(monkeypatch):
    small(monkeypatch)
    good = hand_constants.as_point(hand_weights())
    wild = good.clone()
    wild[:2] = 30.0
    found = hand_constants.scores(torch.stack((good, wild)), hand_constants.problems())
    assert found.shape == (4, 2)
    assert found.isfinite().all()
    assert float(found.abs().max()) <= hand_constants.CLIP
    assert float(found[:, 1].mean()) > float(found[:, 0].mean()) + 0.5


def test_a_run_taken_up_again_ends_as_an_unbroken_one(monkeypatch, tmp_path):
    small(monkeypatch)
    whole = hand_constants.run(tmp_path / "a.json", 3)
    hand_constants.run(tmp_path / "b.json", 1)
    parts = hand_constants.run(tmp_path / "b.json", 3)
    assert parts["mean"] == whole["mean"] == json.loads((tmp_path / "a.json").read_text())["mean"]
    assert len(whole["history"]) == 3


def test_no_problem_is_held_out():
    for family in hand_constants.FAMILIES:
        check_trainable(family)
