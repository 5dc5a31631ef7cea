"""Fixtures of several files: the compiled kernels, their instruction sets, a loopback Hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

from learned_optim import kernels
from learned_optim.kernels import build, native


@pytest.fixture(scope="session")
def built_kernels() -> None:
    """Build the kernels where the install has none; skip where there is no compiler."""
    if not kernels.available():
        try:
            build.build()
        except build.BuildError as problem:
            pytest.skip(str(problem))
        native._load.cache_clear()
        assert kernels.why_not() is None


@pytest.fixture(params=native.LEVELS)
def level(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, built_kernels: None
) -> str:
    """Each instruction set in turn; skip those that this machine lacks."""
    if native.LEVELS.index(request.param) > native.best_level():
        pytest.skip(f"this machine has no {request.param}")
    monkeypatch.setenv("LEARNED_OPTIM_ISA", request.param)
    return request.param


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where the Hub's client keeps what it has fetched from `server`."""
    return tmp_path / "cache"


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the client in this process talk to another address; it reads its own at import."""
    from huggingface_hub import constants, file_download

    def to(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, file_download):  # before 1.0 the second had its own
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)

    return to


@pytest.fixture
def server(
    cache: Path, connect: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[LoopbackHub]:
    """A hub that the client in this process talks to, without a token, with an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    for name, value in {
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    with LoopbackHub() as running:
        connect(running.url)
        yield running
