"""The folder of a run: one run at a time, full disks, damaged checkpoints, interrupts."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from learned_optim import meta_training
from learned_optim.meta_training import checkpoint
from learned_optim.meta_training.checkpoint import CheckpointError

RECIPE = """
name = "tiny"
[rule]
name = "l2l"
hidden = 3
layers = 1
[[tasks]]
family = "quadratic"
runs = 2
[estimator]
name = "tbptt"
unroll = 3
[horizon]
name = "constant"
steps = 6
[outer]
steps = 2
[validation]
every = 2
runs = 2
steps = 3
"""


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Any]:
    """Run the recipe in `tmp_path/out`."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)

    def run(**options: Any) -> Any:
        return meta_training.run(recipe, output=tmp_path / "out", progress=False, **options)

    return run


def changed(path: Path, position: int) -> None:
    """Turn over one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)


def test_a_second_run_in_the_folder_is_refused_until_the_first_has_ended(train, tmp_path):
    train()
    unfinished = tmp_path / "out" / ".checkpoint.pt.abcdef"
    unfinished.write_bytes(b"of the run at work")
    with (tmp_path / "out" / ".lock").open("a") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        for resume in (False, True):
            with pytest.raises(CheckpointError, match=r"another run is at work in .*out: stop it"):
                train(resume=resume)
    assert unfinished.exists()
    train(resume=True)


def test_a_file_system_without_locks_is_no_hindrance(train, monkeypatch):
    def unsupported(file: object, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert train().name == "tiny"


def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(train, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CheckpointError, match=r"no checkpoint yet\. Mend that, then start again"):
        train()
    (tmp_path / "out").unlink()
    train()
    events = sorted((tmp_path / "out").glob("events*"))
    (tmp_path / "out" / ".lock").unlink()
    (tmp_path / "out" / ".lock").mkdir()
    with pytest.raises(CheckpointError, match=r"\.lock'; the last .* intact\. Mend that, then go"):
        train(resume=True)
    assert sorted((tmp_path / "out").glob("events*")) == events


def test_a_full_disk_at_the_first_checkpoint_does_not_advise_to_resume(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"c\.pt'; .* no checkpoint yet.*space, then start"):
        checkpoint.save(tmp_path / "c.pt", {"step": 1})


def test_a_full_disk_at_the_card_leaves_none_and_resuming_writes_it(train, tmp_path, monkeypatch):
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == "README.md":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    card = tmp_path / "out" / "README.md"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(CheckpointError, match=r"README\.md'.*Free some space.*--resume"):
            train()
    assert not card.exists()
    train(resume=True)
    assert "# tiny" in card.read_text()


def test_a_checkpoint_of_which_one_bit_has_changed_is_refused(train, tmp_path):
    train()
    path = tmp_path / "out" / "checkpoint.pt"
    weights = checkpoint.load(path)["best"]["weights"]["head.w"].numpy().tobytes()
    changed(path, path.read_bytes().index(weights) + 3)
    with pytest.raises(CheckpointError, match="has changed since it was written"):
        train(resume=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "TypeError: it holds no dict but a list"),
        ({}, "KeyError: 'weights'"),
    ],
)
def test_what_is_no_checkpoint_of_a_run_is_refused(train, tmp_path, content, message):
    (tmp_path / "out").mkdir()
    torch.save(content, tmp_path / "out" / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=f"can not be read .{message}.*start afresh"):
        train(resume=True)
