"""Files that are read only so far, and replaced in one piece."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from learned_optim.errors import WeightsError


def read_head(path: Path, size: int) -> bytes:
    """The first `size` bytes of a regular file, all of a shorter one.

    Raises:
        FileNotFoundError: nothing is there, or something else, such as a folder or a pipe.
        OSError: it cannot be read.
    """
    if not os.path.isfile(path):  # noqa: PTH113, as Path.is_file raises where it may not look
        raise FileNotFoundError(f"{path} is not there, or is no regular file")
    with path.open("rb") as stream:
        return stream.read(size)


def read_whole(path: Path, limit: int) -> bytes:
    """The bytes of a regular file, of which never more than `limit` + 1 are read.

    Raises:
        WeightsError: it is over the limit.
        FileNotFoundError: as `read_head`.
        OSError: as `read_head`.
    """
    data = read_head(path, limit + 1)
    if len(data) > limit:
        raise WeightsError(f"{path} is larger than the limit of {limit} bytes")
    return data


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
