"""Whose threads the kernels run on: those of torch's OpenMP, or their own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from learned_optim import kernels
from learned_optim.kernels import native, structs

pytestmark = pytest.mark.usefixtures("built_kernels")
SIZE = 1 << 21  # enough that a kernel asks for several threads
TEAM = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
)  # as GOMP_parallel


@pytest.fixture
def run_on() -> Iterator[Callable[[Any], None]]:
    """Sets the team, and puts back what was there."""
    library = native.library()
    yield library.learned_optim_set_team
    library.learned_optim_set_team(None)
    native._share_threads(library)


def taken(threads: int) -> Tensor:
    """What a kernel leaves of a parameter and of what is owed."""
    draw = torch.Generator().manual_seed(0)
    param, owed, step = torch.randn(3, SIZE, generator=draw).unbind()
    kernels.take_(param, owed, step, share=0.5, due=0.25, threads=threads)
    return torch.stack((param, owed))


@pytest.mark.parametrize("threads", [2, 7])
def test_own_threads_give_the_same(threads: int, run_on: Callable[[Any], None]):
    shared = taken(threads)
    run_on(None)
    assert torch.equal(taken(threads), shared)
    assert torch.equal(taken(1), shared)


def test_a_team_is_asked_for_all_threads_and_may_come_with_fewer(run_on: Callable[[Any], None]):
    asked: list[int] = []

    @TEAM
    def alone(function: int, data: int, threads: int, _flags: int) -> None:
        asked.append(threads)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(data)

    @ctypes.CFUNCTYPE(ctypes.c_int)
    def last() -> int:
        return 2

    expected = taken(1)
    run_on(ctypes.byref(structs.Team.of(alone, last)))
    assert torch.equal(taken(3), expected)
    assert asked == [3]
    taken(1)
    assert asked == [3], "one thread needs no team"


class Library:
    """A stand-in that remembers whose threads it was told to use."""

    def __init__(self) -> None:
        self.told: list[structs.Team] = []

    def learned_optim_set_team(self, team: Any) -> None:
        if team is not None:
            self.told.append(team._obj)


def test_it_is_the_team_of_torch():
    process = ctypes.CDLL(None)
    try:
        torchs = structs.Team.of(process.GOMP_parallel, process.omp_get_thread_num)
    except AttributeError:
        pytest.skip("torch runs on threads that cannot be asked here")
    library: Any = Library()
    native._share_threads(library)
    assert [(team.run, team.place) for team in library.told] == [(torchs.run, torchs.place)]


def test_without_one_the_kernels_start_their_own(monkeypatch: pytest.MonkeyPatch):
    library: Any = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    native._share_threads(library)
    assert not library.told


@pytest.mark.parametrize("threads", [2, 3, 5, 64, 65, 100])
def test_every_chunk_is_done_once_however_they_are_dealt(
    threads: int, run_on: Callable[[Any], None]
):
    # Steps that are added twice, or not at all, would show.
    expected = taken(1)
    for team in ("torch's", "own"):
        if team == "own":
            run_on(None)
        assert torch.equal(taken(threads), expected), team


def test_several_threads_of_python_may_call_at_once():
    expected = taken(1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(taken, [2, 3, 2, 3] * 4))
    assert all(torch.equal(each, expected) for each in found)


def test_a_forked_process_does_not_wait_for_threads_that_it_has_not():
    script = """
        import os, sys, torch
        from learned_optim import kernels

        param, owed, step = torch.zeros(3, 1 << 21).unbind()

        def take():
            kernels.take_(param, owed, step, share=0.5, due=0.25, threads=2)

        torch.set_num_threads(2)
        take()
        child = os.fork()
        if not child:
            take()
            os._exit(0)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            assert process.wait(timeout=60) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the child as well
            raise
