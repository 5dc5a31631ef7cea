"""Atomic checkpoints: a reader sees the old file or the new one, never a torn one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch


class CheckpointError(RuntimeError):
    """A checkpoint that can not be written or used; the message says what to do."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`: a temporary file beside it, flushed to the disk, then renamed.

    Raises:
        CheckpointError: if that fails (a full disk, say); the previous checkpoint is untouched.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"could not write the checkpoint {path}: {error}; the one before it is intact. "
            "Free some space, then go on with --resume."
        ) from error


def sweep(path: Path) -> None:
    """Remove the unfinished files that kills in the middle of `save` have left beside `path`."""
    for unfinished in path.parent.glob(f".{path.name}.*"):
        unfinished.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint written by `save`.

    Raises:
        CheckpointError: if there is none, or it can not be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}: start without --resume") from error
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint {path} can not be read ({error}): remove it to start afresh"
        ) from error
