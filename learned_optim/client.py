"""The Hub's client: names it takes, when to ask it again, what its errors mean to a user."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from typing import TypeVar

from learned_optim.weight_checks import CONFIG_FILE, WEIGHTS_FILE

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
# Seconds to wait before asking again a server that is there but failed.
_PAUSES = (0.5, 1.0)
# What breaks off in the middle of a body is called so by the client's libraries before and after
# its version 1; later versions go on by themselves.
_HUNG_UP = ("ChunkedEncodingError", "RemoteProtocolError")

# The cache cannot be written: full, over a quota or a limit, not allowed, or below a file.
_NO_ROOM = {
    getattr(errno, name, None)  # Windows lacks one
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "ENOTDIR")
} - {None}

T = TypeVar("T")


def patiently(fetch: Callable[[], T]) -> T:
    """Call again, after a pause, when the server failed, was too busy or hung up.

    Not when it was never reached: without a network that would only be a longer wait.
    """
    for pause in _PAUSES:
        try:
            return fetch()
        except Exception as error:
            hung_up = type(error).__name__ in _HUNG_UP
            if not hung_up and status(error) < 500 and status(error) != 429:
                raise
        time.sleep(pause)
    return fetch()


def status(error: BaseException) -> int:
    """The status of the answer that an error of the client stands for; 0 where none came."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def short(error: BaseException) -> str:
    """Type and first line of what is at the bottom: the client's messages go on for a page."""
    while error.__cause__ is not None and not status(error):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def explain(repo: str, revision: str, error: Exception) -> str:
    """What went wrong with a download, and what to do about it."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError) or status(error) == 403:
        why = "it asks for permission: accept its terms on its page, then `hf auth login`"
    elif isinstance(error, errors.RepositoryNotFoundError) or status(error) == 401:
        why = "there is no such repository, or it is private: `hf auth login`, or set HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        why = f"the repository has no tag, branch or commit {revision!r}"
    elif isinstance(error, errors.EntryNotFoundError) and status(error) == 404:
        why = f"the repository is no rule: it lacks {WEIGHTS_FILE} or {CONFIG_FILE}"
    elif isinstance(error, UnicodeDecodeError):
        folder = f"models--{repo.replace('/', '--')}"
        why = f"the cache {constants.HF_HUB_CACHE} is damaged: delete {folder} in it"
    elif getattr(error, "errno", None) in _NO_ROOM:
        why = f"the cache {constants.HF_HUB_CACHE} cannot be written; HF_HOME puts it elsewhere"
    else:
        why = (
            f"{constants.ENDPOINT} was asked and the cache has no copy: try again, or fetch the "
            "folder elsewhere and give its path"
        )
    return f"{repo}@{revision} is not available: {why} ({short(error)})"
