"""Files that are replaced in one piece."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old bytes or the new, never a mix.

    Raises:
        OSError: naming `path`, if that fails (a full disk, say); what was there is untouched.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            # mkstemp makes files that only their owner reads; what is written is to be shared.
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        # Of the temporary file's name, or none, a user could make nothing.
        raise OSError(error.errno, error.strerror, str(path)) from error
