"""Atomic checkpoints: a reader sees the old file or the new one, never a torn one."""

from __future__ import annotations

import contextlib
import errno
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from learned_optim import files

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CheckpointError(RuntimeError):
    """A run whose files can not be written or used; the message says what to do."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`: a temporary file beside it, flushed to the disk, then renamed.

    Raises:
        CheckpointError: if that fails (a full disk, say); the previous checkpoint is untouched.
    """
    # By way of memory: torch hides an error of the disk in one of its own.
    stream = io.BytesIO()
    torch.save(content, stream)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, stream.getvalue())


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say how a run goes on whose files can not be written.

    Args:
        path: of its checkpoint.

    Raises:
        CheckpointError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        kept = "the last checkpoint is intact" if path.exists() else "there is no checkpoint yet"
        remedy = "Free some space" if error.errno in _NO_SPACE else "Mend that"
        then = "go on with --resume" if path.exists() else "start again"
        raise CheckpointError(
            f"could not write to {path.parent}: {error}; {kept}. {remedy}, then {then}"
        ) from error


def sweep(path: Path) -> None:
    """Remove the unfinished files that kills in the middle of `save` have left beside `path`."""
    for unfinished in path.parent.glob(f".{path.name}.*"):
        unfinished.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint written by `save`.

    Raises:
        CheckpointError: if it can not be read, or is not as it was written.
    """
    try:
        # torch writes a checksum of every part and does not look at it again.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} has changed since it was written")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise TypeError(f"it holds no dict but a {type(content).__name__}")
    except Exception as error:
        raise unusable(path, error) from error
    return content


def unusable(path: Path, error: Exception) -> CheckpointError:
    """What to raise for a checkpoint that no run can go on with."""
    why = f"{type(error).__name__}: {error}"
    return CheckpointError(
        f"the checkpoint {path} can not be read ({why}): remove it to start afresh"
    )
