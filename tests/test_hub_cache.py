"""A cache of the Hub's client with things in it that the client did not put there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from loopback_hub import LoopbackHub

from learned_optim import hub
from learned_optim.rules import Adam
from learned_optim.weights import WeightsUnavailable, save_folder

REPO = "user/rule"


@pytest.fixture
def commit(tmp_path: Path, server: LoopbackHub) -> str:
    """The commit of a rule that the server has and the cache too, by its tag `v1`."""
    folder = tmp_path / "rule"
    save_folder(folder, Adam(), Adam().init_weights(torch.Generator()), name="small")
    made = server.put(REPO, {path.name: path.read_bytes() for path in folder.iterdir()}, tag="v1")
    hub.load_rule(f"{REPO}@v1")
    return made


@pytest.fixture
def cached(cache: Path, commit: str) -> Path:
    return cache / "models--user--rule"


@pytest.mark.parametrize("offline", [False, True])
def test_a_ref_that_is_no_text_is_unavailable(
    offline: bool, cache: Path, cached: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    (cached / "refs" / "v1").write_bytes(b"\xff\xfe")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", offline)
        message = (
            "HF_HUB_OFFLINE is set" if offline else f"{cache} is damaged: delete {cached.name}"
        )
        with pytest.raises(WeightsUnavailable, match=f"user/rule@v1 .*{message}"):
            hub.load_rule(f"{REPO}@v1")
    shutil.rmtree(cached)
    assert hub.load_rule(f"{REPO}@v1").name == "small"


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("by_commit", [False, True])
def test_a_folder_in_the_place_of_a_file_says_what_to_delete(
    file: str, link: bool, by_commit: bool, cached: Path, commit: str
):
    source = f"{REPO}@{commit if by_commit else 'v1'}"
    path = cached / "snapshots" / commit / file
    path.unlink()
    if link:
        path.symlink_to(cached / "blobs")
    else:
        path.mkdir()
    message = rf"^{source} cannot be had from the cache: .* has no {file}.*Delete {cached}, and"
    with pytest.raises(WeightsUnavailable, match=message):
        hub.load_rule(source)
    shutil.rmtree(cached)
    assert hub.load_rule(source).name == "small"


def test_a_cache_below_a_file_cannot_be_written(cache: Path, cached: Path):
    shutil.rmtree(cache)
    cache.write_text("a file")
    with pytest.raises(WeightsUnavailable, match=f"{cache} cannot be written; HF_HOME puts it"):
        hub.load_rule(f"{REPO}@v1")
