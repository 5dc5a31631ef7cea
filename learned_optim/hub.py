"""Rules from the Hugging Face Hub, and to it; the only importer of its client, and only when used.

A rule on the Hub is a model repository that holds what `learned_optim.weights` writes, a model
card, and tags `v1`, `v2`, ... It is named `user/repo@revision`, where the revision is a tag, a
branch, or, for the same bytes forever, a commit of 40 hexadecimal digits: such a one is asked for
once and then served from the client's cache without any request.

The client does not look at what it hands over: a damaged cache, or another body of the same size,
passes. So everything is checked here: sizes before and after the download, contents against the
hashes that address them in the cache and in the config, then all that a local folder goes through.

Timeouts, cache folder, token, endpoint and offline mode are the client's own settings
(`HF_HUB_ETAG_TIMEOUT`, `HF_HUB_DOWNLOAD_TIMEOUT`, `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`,
`HF_HUB_OFFLINE`), which it reads when it is imported.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from learned_optim.weight_checks import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    MAX_WEIGHTS_BYTES,
    WEIGHTS_FILE,
)
from learned_optim.weights import (
    LoadedRule,
    WeightsError,
    WeightsUnavailable,
    bundled_names,
    decode,
    load_bundled,
    load_folder,
    read_files,
)

MODEL_CARD = "README.md"
# All that `publish` uploads: whatever else lies in the folder (checkpoints, logs) stays there.
PUBLISHED_FILES = (CONFIG_FILE, WEIGHTS_FILE, MODEL_CARD, "recipe.toml", "metrics.json")

_LIMITS = {WEIGHTS_FILE: MAX_WEIGHTS_BYTES, CONFIG_FILE: MAX_CONFIG_BYTES}
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Without symbolic links, or on a mirror, the cache has other names.
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# Seconds to wait before asking again a server that is there but failed.
_PAUSES = (0.5, 1.0)
# What breaks off in the middle of a body is called so by the client's libraries before and after
# its version 1; later versions go on by themselves.
_HUNG_UP = ("ChunkedEncodingError", "RemoteProtocolError")

T = TypeVar("T")


def load_rule(source: str | os.PathLike[str] | LoadedRule) -> LoadedRule:
    """Load a rule by its bundled name, from a folder, or from the Hub.

    Args:
        source: a name of `bundled_names()`, which never touches the network; the path of a folder
            (`runs/mine`, `./mine`, `~/mine`, or any `Path`); `user/repo@revision` on the Hub; or
            a `LoadedRule`, which comes back as it is.

    Raises:
        WeightsUnavailable: nothing there; the message says what was tried and what to do.
        WeightsError: found, but it failed a check, which the message names.
        TypeError: `source` is none of these.
    """
    if isinstance(source, LoadedRule):
        return source
    if isinstance(source, os.PathLike):
        return load_folder(source)
    if not isinstance(source, str):
        raise TypeError(
            "a rule is a bundled name, a folder, 'user/repo@revision' or a LoadedRule, not "
            f"{source!r}"
        )
    if source in bundled_names():
        return load_bundled(source)
    folder = Path(source).expanduser() if source.startswith("~") else Path(source)
    if os.path.isdir(folder):  # noqa: PTH112, as Path.is_dir raises for some names
        return load_folder(folder)
    repo, at, revision = source.partition("@")
    if at and _REPO.fullmatch(repo) and _REVISION.fullmatch(revision):
        return _load_from_hub(repo, revision)
    if "/" in source or "\\" in source or source.startswith((".", "~")):
        return _load_missing_path(folder, source)
    return load_bundled(source)


def download(repo: str, revision: str, *, force: bool = False) -> Path:
    """Put both files of a rule into the client's cache and return their folder there.

    Both come from one commit, even while the branch moves. If the Hub fails, or cannot be reached,
    the copy of the last time is used, with a warning.

    Args:
        repo: `user/repo`.
        revision: tag, branch or commit.
        force: download even what is cached.

    Raises:
        WeightsUnavailable: not on the Hub, not readable, or no network and no copy.
        WeightsError: a file is larger than its limit; it is then not downloaded.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise WeightsUnavailable(f"{repo} is no name that the Hub allows: {error}") from None
    if not force and (_COMMIT.fullmatch(revision) or constants.HF_HUB_OFFLINE):
        folder = _cached(repo, revision)
        if folder is not None:
            return folder
    if constants.HF_HUB_OFFLINE:
        raise WeightsUnavailable(
            f"{repo}@{revision} is not in the cache and HF_HUB_OFFLINE is set: unset it, or give "
            "the path of a folder"
        )
    try:
        commit = _patiently(lambda: _fetch(repo, WEIGHTS_FILE, revision, force)).parent.name
        return _patiently(lambda: _fetch(repo, CONFIG_FILE, commit, force)).parent
    except WeightsError:
        raise
    except Exception as error:  # the client's errors have no common base
        refused = 400 <= _status(error) < 500 and _status(error) not in (408, 429)
        folder = None if force or refused else _cached(repo, revision)
        if folder is None:
            raise WeightsUnavailable(_explain(repo, revision, error)) from error
        warnings.warn(
            f"{repo}@{revision} could not be had from the Hub ({_short(error)}); using commit "
            f"{folder.name} from the cache",
            stacklevel=2,
        )
        return folder


def publish(
    folder: str | os.PathLike[str], repo: str, *, tag: str | None = None, private: bool = False
) -> str:
    """Upload a rule, after the checks of loading, and return `user/repo@commit`, which loads it.

    Uploads the files of `PUBLISHED_FILES` that are there, in one commit on `main`; makes the
    repository if needed.

    Args:
        folder: as `weights.save_folder` writes it, with a model card `README.md` whose header
            states the licence.
        repo: `user/repo`.
        tag: for this version, such as `v1`; must be new.
        private: for a repository that is new.

    Raises:
        WeightsUnavailable: the folder is not there, or the Hub refused or could not be reached.
        WeightsError: the rule fails a check, has no model card, or the tag exists.
        ValueError: `repo` or `tag` is malformed.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    if not _REPO.fullmatch(repo):
        raise ValueError(f"repo must be 'user/repo' but is {repo!r}")
    validate_repo_id(repo)
    if tag is not None and ("/" in tag or not _REVISION.fullmatch(tag)):
        raise ValueError(f"tag must be letters, digits, '.', '_', '-' but is {tag!r}")
    load_folder(folder)
    _check_model_card(Path(folder))
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if tag is not None and tag in {ref.name for ref in api.list_repo_refs(repo).tags}:
            raise WeightsError(f"{repo} has a tag {tag!r} already; give the next one")
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=Path(folder),
            allow_patterns=list(PUBLISHED_FILES),
            commit_message=f"Publish {tag or 'a rule'}",
        ).oid
        if tag is not None:
            api.create_tag(repo, tag=tag, revision=commit)
    except WeightsError:
        raise
    except Exception as error:  # the client's errors have no common base
        raise WeightsUnavailable(
            f"{folder} could not be published as {repo}: {_short(error)}. A write token is "
            "needed: `hf auth login`, or HF_TOKEN"
        ) from error
    return f"{repo}@{commit}"


def _load_missing_path(folder: Path, source: str) -> LoadedRule:
    """`load_folder`, which fails; a path of two parts may have been meant for the Hub."""
    try:
        return load_folder(folder)
    except WeightsUnavailable as error:
        if not _REPO.fullmatch(source):
            raise
        raise WeightsUnavailable(
            f"{error}; a rule on the Hub needs its revision: '{source}@main'"
        ) from None


def _load_from_hub(repo: str, revision: str) -> LoadedRule:
    folder = download(repo, revision)
    try:
        return _load_checked(folder)
    except WeightsError as damage:
        # A damaged cache or download can be cured, once; a bad file on the Hub cannot.
        try:
            return _load_checked(download(repo, revision, force=True))
        except (WeightsError, WeightsUnavailable) as error:
            raise WeightsError(
                f"{repo}@{revision} cannot be used: {damage}. Fetched again: {error}"
            ) from error


def _load_checked(folder: Path) -> LoadedRule:
    """Load from the client's cache, where the name of a blob is the hash of its contents."""
    config, blob = read_files(folder)
    for file, data in ((CONFIG_FILE, config), (WEIGHTS_FILE, blob)):
        address = (folder / file).resolve().name
        if _HASH.fullmatch(address) and address not in _addresses(data):
            raise WeightsError(
                f"{folder / file} has other contents than the Hub announced: its sha256 is "
                f"{hashlib.sha256(data).hexdigest()}, its address {address}"
            )
    return decode(config, blob, str(folder))


def _addresses(data: bytes) -> tuple[str, str]:
    """What the Hub may call a file: sha256 if stored as a large file, else git's hash of a blob."""
    blob = b"blob %d\0" % len(data) + data
    return hashlib.sha256(data).hexdigest(), hashlib.sha1(blob, usedforsecurity=False).hexdigest()


def _fetch(repo: str, file: str, revision: str, force: bool) -> Path:
    """Ask for a file's size, then download it unless the cache has it."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    timeout = constants.HF_HUB_ETAG_TIMEOUT
    size = get_hf_file_metadata(hf_hub_url(repo, file, revision=revision), timeout=timeout).size
    if size is not None and size > _LIMITS[file]:
        raise WeightsError(
            f"{file} of {repo}@{revision} has {size} bytes, over the limit of {_LIMITS[file]}; "
            "it was not downloaded"
        )
    return Path(hf_hub_download(repo, file, revision=revision, force_download=force))


def _cached(repo: str, revision: str) -> Path | None:
    """The folder of the cache that holds both files of this revision, if there is one."""
    from huggingface_hub import try_to_load_from_cache

    weights = try_to_load_from_cache(repo, WEIGHTS_FILE, revision=revision)
    if not isinstance(weights, str):
        return None
    folder = Path(weights).parent
    return folder if (folder / CONFIG_FILE).is_file() else None


def _patiently(fetch: Callable[[], T]) -> T:
    """Call again, after a pause, when the server failed, was too busy or hung up.

    Not when it was never reached: without a network that would only be a longer wait.
    """
    for pause in _PAUSES:
        try:
            return fetch()
        except Exception as error:
            hung_up = type(error).__name__ in _HUNG_UP
            if not hung_up and _status(error) < 500 and _status(error) != 429:
                raise
        time.sleep(pause)
    return fetch()


def _status(error: BaseException) -> int:
    """The status of the answer that an error of the client stands for; 0 where none came."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def _short(error: BaseException) -> str:
    """Type and first line of what is at the bottom: the client's messages go on for a page."""
    while error.__cause__ is not None and not _status(error):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _explain(repo: str, revision: str, error: Exception) -> str:
    """What went wrong with a download, and what to do about it."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError) or _status(error) == 403:
        why = "it asks for permission: accept its terms on its page, then `hf auth login`"
    elif isinstance(error, errors.RepositoryNotFoundError) or _status(error) == 401:
        why = "there is no such repository, or it is private: `hf auth login`, or set HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        why = f"the repository has no tag, branch or commit {revision!r}"
    elif isinstance(error, errors.EntryNotFoundError) and _status(error) == 404:
        why = f"the repository is no rule: it lacks {WEIGHTS_FILE} or {CONFIG_FILE}"
    else:
        why = (
            f"{constants.ENDPOINT} was asked and the cache has no copy: try again, or fetch the "
            "folder elsewhere and give its path"
        )
    return f"{repo}@{revision} is not available: {why} ({_short(error)})"


def licence(folder: Path) -> str | None:
    """The licence that the header of the folder's model card states, if it does."""
    try:
        text = (folder / MODEL_CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    header = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    stated = header and re.search(r"^license: *(\S.*)$", header[1], re.MULTILINE)
    return stated[1].strip() if stated else None


def _check_model_card(folder: Path) -> None:
    if not (folder / MODEL_CARD).is_file():
        raise WeightsError(f"{folder} has no {MODEL_CARD}, the model card; write one first")
    if licence(folder) is None:
        raise WeightsError(
            f"{folder / MODEL_CARD} must begin with a header between two lines '---' that states "
            "the licence, such as 'license: apache-2.0'"
        )
