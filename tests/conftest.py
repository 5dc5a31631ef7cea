"""Fixtures of several files: the compiled kernels, and each instruction set they have code for."""

from __future__ import annotations

import pytest

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
