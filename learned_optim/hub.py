"""Rules from the Hugging Face Hub, whose client is imported only when it is used.

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
import warnings
from pathlib import Path

from learned_optim import client
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

_LIMITS = {WEIGHTS_FILE: MAX_WEIGHTS_BYTES, CONFIG_FILE: MAX_CONFIG_BYTES}
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Without symbolic links, or on a mirror, the cache has other names.
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


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
    folder = as_path(source)
    if os.path.isdir(folder):  # noqa: PTH112, as Path.is_dir raises for some names
        return load_folder(folder)
    repo, at, revision = source.partition("@")
    if at and client.REPO.fullmatch(repo) and client.REVISION.fullmatch(revision):
        return _load_from_hub(repo, revision)
    if "/" in source or "\\" in source or source.startswith((".", "~")):
        return _load_missing_path(folder, source)
    return load_bundled(source)


def as_path(source: str | os.PathLike[str]) -> Path:
    """Where a source lies if it is a folder; in a `Path`, `~` is a name like any other."""
    if not isinstance(source, str):
        return Path(source)
    try:
        return Path(source).expanduser()
    except (RuntimeError, ValueError):  # there is no such user, or can be none
        return Path(source)


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
        commit = client.patiently(lambda: _fetch(repo, WEIGHTS_FILE, revision, force)).parent.name
        return client.patiently(lambda: _fetch(repo, CONFIG_FILE, commit, force)).parent
    except WeightsError:
        raise
    except Exception as error:  # the client's errors have no common base
        refused = 400 <= client.status(error) < 500 and client.status(error) not in (408, 429)
        folder = None if force or refused else _cached(repo, revision)
        if folder is None:
            raise WeightsUnavailable(client.explain(repo, revision, error)) from error
        warnings.warn(
            f"{repo}@{revision} could not be had from the Hub ({client.short(error)}); using "
            f"commit {folder.name} from the cache",
            stacklevel=2,
        )
        return folder


def _load_missing_path(folder: Path, source: str) -> LoadedRule:
    """`load_folder`, which fails; a path of two parts may have been meant for the Hub."""
    try:
        return load_folder(folder)
    except WeightsUnavailable as error:
        if not client.REPO.fullmatch(source):
            raise
        raise WeightsUnavailable(
            f"{error}; a rule on the Hub needs its revision: '{source}@main'"
        ) from None


def _load_from_hub(repo: str, revision: str) -> LoadedRule:
    folder = download(repo, revision)
    try:
        return _load_checked(folder)
    except WeightsUnavailable as error:
        # Something that is no file is in the place of one. The client leaves it there.
        raise WeightsUnavailable(
            f"{repo}@{revision} cannot be had from the cache: {error}. Delete {folder.parents[1]}, "
            "and it is fetched anew"
        ) from error
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

    try:
        weights = try_to_load_from_cache(repo, WEIGHTS_FILE, revision=revision)
    except (OSError, ValueError):  # its ref cannot be read, or is no text
        return None
    if not isinstance(weights, str):
        return None
    folder = Path(weights).parent
    return folder if (folder / CONFIG_FILE).is_file() else None
