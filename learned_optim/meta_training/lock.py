"""One run at a time in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from learned_optim.meta_training import checkpoint, parallel


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other runs from the folder of the checkpoint `path` until the block or the process ends.

    The folder is made if needed. Under torchrun the first process holds the lock for all.

    Raises:
        checkpoint.CheckpointError: if another run is at work there, or nothing can be written.
    """
    if parallel.rank() != 0:
        yield
        return
    with contextlib.ExitStack() as stack:
        with checkpoint.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # It stays: whoever removed it could remove the one that the next run holds.
            file = stack.enter_context((path.parent / ".lock").open("a"))
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise checkpoint.CheckpointError(
                f"another run is at work in {path.parent}: stop it first, or name another --output"
            ) from error
        except (ImportError, OSError):
            pass  # Windows and some network file systems have no such locks.
        yield
