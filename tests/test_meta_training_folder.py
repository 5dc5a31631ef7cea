"""A run and its surroundings: its folder, full disks, damaged checkpoints, interrupts, errors."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from learned_optim import cli, meta_training
from learned_optim.meta_training import __main__ as module
from learned_optim.meta_training import checkpoint, loop
from learned_optim.meta_training.checkpoint import CheckpointError
from learned_optim.meta_training.outer_loop import MetaTrainer

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


@pytest.fixture(params=["learned-optim meta-train", "python -m learned_optim.meta_training"])
def command(request, tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """Run the recipe in `tmp_path/out`; the exit code, and what was printed to stderr."""
    (tmp_path / "recipe.toml").write_text(RECIPE)

    def run(recipe: str = "recipe.toml") -> tuple[int, str]:
        argv = [str(tmp_path / recipe), "--output", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["x", *argv])
        with pytest.raises(SystemExit) as caught:
            module.main() if "-m" in request.param else cli.main(["meta-train", *argv, "--quiet"])
        assert isinstance(caught.value.code, int)
        return caught.value.code, capsys.readouterr().err

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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.toml", b'name = "tiny"'),
        ("metrics.json", b'"history"'),
        ("curves.png", b"\x89PNG"),
        ("README.md", b"# tiny"),
    ],
)
def test_a_full_disk_at_a_file_leaves_none_and_resuming_writes_it(
    train, tmp_path, monkeypatch, name, content
):
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    path = tmp_path / "out" / name
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(CheckpointError, match=rf"{name}'.*Free some space.*--resume"):
            train()
    assert not list(path.parent.glob(f"*{name}*"))
    train(resume=True)
    assert content in path.read_bytes()


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


def test_an_interrupted_command_says_where_it_stopped_and_how_to_go_on(
    command, tmp_path, monkeypatch
):
    step = MetaTrainer.step

    def interrupted(self: MetaTrainer) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(MetaTrainer, "step", interrupted)
    code, errors = command()
    assert code == 130
    assert errors.splitlines()[-1] == "stopped by a signal at step 1; --resume goes on"
    assert checkpoint.load(tmp_path / "out" / "checkpoint.pt")["step"] == 1


def test_what_is_no_bug_ends_a_command_with_one_line(command, tmp_path):
    code, errors = command("none.toml")
    assert (code, errors.count("\n")) == (2, 1)
    assert errors.startswith("error: can not read the recipe")
    (tmp_path / "out").mkdir()
    torch.save({}, tmp_path / "out" / "checkpoint.pt")
    code, errors = command()
    assert (code, errors.count("\n")) == (2, 1)


@pytest.fixture
def interruptible():
    """Interrupts raise, also where the tests run in the background and shells have them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("later", [False, True])
def test_a_second_signal_acts_at_once_if_it_is_not_an_echo_of_the_first(train, monkeypatch, later):
    came = []

    def long(self: MetaTrainer) -> dict[str, float]:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            came.append(1)
        return {"step": 0.0, "score": 1.0}

    monkeypatch.setattr(MetaTrainer, "validate", long)
    monkeypatch.setattr(loop, "ONE_SIGNAL", 0.0 if later else 1000.0)
    with pytest.raises(KeyboardInterrupt, match="^$" if later else "at step 1"):
        train()
    assert len(came) == (1 if later else 2)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
