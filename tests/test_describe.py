"""Descriptions of folders that someone else may have made: bounded, and each fact one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from learned_optim import describe
from learned_optim.cost import StepCost
from learned_optim.rules import Adam
from learned_optim.weights import save_folder

CARD = "---\nlicense: {}\n---\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A rule whose step is not timed."""
    cost = StepCost(1.0, times_adam=1.0, parameters=1, backend="eager")
    monkeypatch.setattr(describe, "step_cost", lambda loaded: cost)
    save_folder(tmp_path / "rule", Adam(), Adam().init_weights(torch.Generator()), name="a-rule")
    return tmp_path / "rule"


def facts(folder: Path) -> list[str]:
    """The lines from the licence on."""
    lines = describe.describe(folder).split("\n")
    return lines[[line.partition(":")[0] for line in lines].index("licence") :]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_count_as_not_there(folder: Path):
    for file in ("metrics.json", "README.md"):
        os.mkfifo(folder / file)
    assert facts(folder) == ["licence: not stated"]


def test_a_link_to_a_device_counts_as_not_there(folder: Path):
    for file in ("metrics.json", "README.md"):
        (folder / file).symlink_to("/dev/zero")
    assert facts(folder) == ["licence: not stated"]


def test_metrics_over_their_limit_are_not_read(folder: Path):
    with (folder / "metrics.json").open("wb") as stream:
        stream.truncate(1024 * 1024 + 1)
    assert facts(folder)[1].endswith("metrics.json is larger than the limit of 1048576 bytes")


def test_of_a_model_card_the_head_is_read(folder: Path):
    card = CARD.format("apache-2.0").encode() + "\u00e9".encode() * 64 * 1024
    (folder / "README.md").write_bytes(card)
    assert facts(folder) == ["licence: apache-2.0"]


def test_a_model_card_may_have_the_line_ends_of_windows(folder: Path):
    (folder / "README.md").write_bytes(CARD.format("mit").replace("\n", "\r\n").encode())
    assert facts(folder) == ["licence: mit"]


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (4, ["metrics a.a.a.a: 1"]),
        (5, []),
        (500, []),
        (100_000, ["metrics metrics.json: cannot be read: maximum recursion depth exceeded"]),
    ],
)
def test_what_lies_deep_in_metrics_is_left_out(depth: int, expected: list[str], folder: Path):
    (folder / "metrics.json").write_text('{"a":' * depth + "1" + "}" * depth)
    lines = facts(folder)[1:]
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected


def test_what_a_stranger_wrote_stays_in_its_line(folder: Path):
    (folder / "README.md").write_text(CARD.format("\x1b[2Jmit"))
    metrics = {"x\nlicence: mit\nsha256": "\x1b[2J", "long": "y" * 1000, "\ud800": "\u00e9\u202e"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert facts(folder) == [
        r"licence: \x1b[2Jmit",
        r"metrics x\nlicence: mit\nsha256: \x1b[2J",
        f"metrics long: {'y' * 200}",
        "metrics \\ud800: \u00e9\\u202e",
    ]


def test_a_folder_may_be_called_like_the_home_of_nobody(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder.parent)
    folder.rename("~nosuchuser")
    assert describe.describe("~nosuchuser").startswith("name: a-rule")
