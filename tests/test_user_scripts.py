"""The two scripts behind the documentation: a new user's path, and what is seen when it fails."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import hub_faults
import new_user
import pytest

from benchmarks.results import RESULTS

pytest.importorskip("setuptools")
pytest.importorskip("sklearn")


@pytest.mark.slow
def test_a_new_user_gets_from_the_wheel_to_a_published_rule(tmp_path: Path):
    typed = new_user.walk(tmp_path, fresh=False, outer=2)
    commands = [one.command.split()[:2] for one in typed]
    assert ["learned-optim", "publish"] in commands
    assert commands[-1] == ["python", "train.py"]
    assert typed[-1].output.startswith("mine: test accuracy")


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", ["the server is down, warm cache", "the disk is full", "weights cut off"]
)
def test_a_fault_is_seen_as_the_documentation_says(what: str):
    groups = hub_faults.cases(threading.Event())
    (case,) = (case for cases in groups.values() for case in cases if case.what == what)
    shown = json.loads((RESULTS / "faults.json").read_text())["faults"]
    (row,) = (row for rows in shown.values() for row in rows if row["fault"] == what)
    seen = hub_faults.provoke(case)
    assert (seen["outcome"], seen["type"]) == (row["outcome"], row["type"])
    # In brackets are words of the Hub's client, which change with its version.
    assert str(seen["message"]).partition(" (")[0] == row["message"].partition(" (")[0]


def test_every_fault_that_the_documentation_shows_can_be_provoked():
    shown = json.loads((RESULTS / "faults.json").read_text())["faults"]
    cases = hub_faults.cases(threading.Event())
    assert {group: [row["fault"] for row in rows] for group, rows in shown.items()} == {
        group: [case.what for case in members] for group, members in cases.items()
    }
