"""Finds, loads and calls the compiled library; what its functions take is in `structs`."""

from __future__ import annotations

import ctypes
import functools
import os
from array import array
from collections.abc import Sequence
from pathlib import Path

from learned_optim.kernels import structs

LEVELS = ("baseline", "avx2", "avx512")


class Unavailable(RuntimeError):
    """The compiled library cannot be used; the message says why and what to do."""


def _open(path: Path, expected_hash: str) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.learned_optim_sources.restype = ctypes.c_char_p
    found = library.learned_optim_sources().decode()
    if found != expected_hash:
        raise Unavailable(
            f"{path} was built from other sources (hash {found}, now {expected_hash}): "
            "run python -m learned_optim.kernels.build"
        )
    _share_threads(library)
    return library


def _share_threads(library: ctypes.CDLL) -> None:
    """Let the kernels run on the threads of torch's OpenMP, where it is one that can be asked.

    They are there already, and spin between two of torch's operations: threads of the kernels' own
    would have to share the cores with them.
    """
    process = ctypes.CDLL(None)
    try:
        team = structs.Team.of(process.GOMP_parallel, process.omp_get_thread_num)
    except AttributeError:
        return
    library.learned_optim_set_team(ctypes.byref(team))
    # A fork copies none of these threads, and OpenMP would wait for them for ever.
    os.register_at_fork(after_in_child=lambda: library.learned_optim_set_team(None))


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none. Remembered: a process decides once."""
    from learned_optim.kernels import build

    problem = "the C++ kernels are not built: run python -m learned_optim.kernels.build"
    try:
        expected_hash = build.sources_hash()
    except OSError as error:
        return f"the sources of the C++ kernels, which the library must fit, are not there: {error}"
    for path in build.candidates():
        try:  # a folder that may not be entered cannot even be asked
            if path.exists():
                return _open(path, expected_hash)
        except (OSError, AttributeError, Unavailable) as error:
            problem = str(error)
    return problem


def why_not() -> str | None:
    """Why the kernels cannot be used, or None when they can."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def library() -> ctypes.CDLL:
    """The compiled library.

    Raises:
        Unavailable: see `why_not`.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise Unavailable(loaded)
    return loaded


def best_level() -> int:
    """Index into `LEVELS` of the best instruction set that this machine has."""
    return library().learned_optim_best_level()


def level() -> int:
    """Index into `LEVELS` of the instruction set that calls use.

    `LEARNED_OPTIM_ISA`, one of `LEVELS`, caps it: to test the others, or to compare machines.

    Raises:
        ValueError: if the variable names none of them.
    """
    cap = os.environ.get("LEARNED_OPTIM_ISA")
    if not cap:
        return best_level()
    if cap not in LEVELS:
        raise ValueError(f"LEARNED_OPTIM_ISA must be one of {', '.join(LEVELS)} but is {cap!r}")
    return min(LEVELS.index(cap), best_level())


class Table:
    """Pointers and other int64 in memory that a kernel reads while this object lives.

    Args:
        values: of a column.
        *more: other columns as long; side by side, row after row.
    """

    def __init__(self, values: Sequence[int], *more: Sequence[int]) -> None:
        self._memory = array("q", bytes(8 * len(values) * (1 + len(more))))
        for index, column in enumerate((values, *more)):
            self._memory[index :: 1 + len(more)] = array("q", column)

    @property
    def address(self) -> int:
        """Of the first number."""
        return self._memory.buffer_info()[0]


def call(function: str, *arguments: ctypes.Structure) -> None:
    """Call an exported function at the level in use.

    Raises:
        MemoryError: when it found too little.
    """
    references = [ctypes.byref(argument) for argument in arguments]
    if getattr(library(), function)(level(), *references):
        raise MemoryError(f"{function} could not allocate its scratch memory")
