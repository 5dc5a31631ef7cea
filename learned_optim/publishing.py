"""Rules to the Hub: what is uploaded, and what must be there before anything is."""

from __future__ import annotations

import os
import re
from pathlib import Path

from learned_optim import client
from learned_optim.files import read_head
from learned_optim.weight_checks import CONFIG_FILE, WEIGHTS_FILE
from learned_optim.weights import WeightsError, WeightsUnavailable, load_folder

MODEL_CARD = "README.md"
# All that `publish` uploads: whatever else lies in the folder (checkpoints, logs) stays there.
PUBLISHED_FILES = (CONFIG_FILE, WEIGHTS_FILE, MODEL_CARD, "recipe.toml", "metrics.json")
# Of a model card; its header is some lines.
_HEADER_BYTES = 64 * 1024


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

    if not client.REPO.fullmatch(repo):
        raise ValueError(f"repo must be 'user/repo' but is {repo!r}")
    validate_repo_id(repo)
    if tag is not None and ("/" in tag or not client.REVISION.fullmatch(tag)):
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
            # Of a version before, which these weights do not have.
            delete_patterns=[
                name for name in PUBLISHED_FILES if not (Path(folder) / name).exists()
            ],
            commit_message=f"Publish {tag or 'a rule'}",
        ).oid
        if tag is not None:
            api.create_tag(repo, tag=tag, revision=commit)
    except WeightsError:
        raise
    except Exception as error:  # the client's errors have no common base
        raise WeightsUnavailable(
            f"{folder} could not be published as {repo}: {client.short(error)}. A write token is "
            "needed: `hf auth login`, or HF_TOKEN"
        ) from error
    return f"{repo}@{commit}"


def licence(folder: Path) -> str | None:
    """The licence that the header of the folder's model card states, if it does.

    Of the card no more than 64 KiB are read, which may end in the middle of a character.
    """
    try:
        text = read_head(folder / MODEL_CARD, _HEADER_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return None
    header = re.match(r"---\r?\n(.*?)\n---\r?\n", text, re.DOTALL)
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
