"""The kernels under GCC's sanitizers, on Linux: a plugin for pytest, and what runs it.

    PYTHONPATH=tests python tests/sanitize.py tests/test_kernels.py    # see `make sanitize`

The first run ends where a kernel touches memory that is not its own; its scratch memory begins as
NaN, with a fence behind each array (src/parallel.h). The second ends at what C++ leaves undefined,
such as overflow of integers and vectors that are not aligned. Data races are not looked for:
-fsanitize=thread does not see the barriers of torch's OpenMP, and calls what follows one a race.
"""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from learned_optim.kernels import build, native

LIBRARY = "SANITIZED_LIBRARY"  # the environment variable that says where it is
# -O3 takes ten times as long to compile.
FLAGS = ["-O1", "-g1", "-fno-omit-frame-pointer"]
# An arena at null only measures, which is arithmetic on null; the others would take minutes.
LEFT_OUT = "-fno-sanitize=pointer-overflow,null,object-size,return,vptr"
KINDS = {
    "asan": ["-fsanitize=address"],
    "ubsan": ["-fsanitize=undefined", LEFT_OUT, "-fno-sanitize-recover=all"],
}
# What is allocated begins as NaN too. Python itself leaks.
OPTIONS = "detect_leaks=0:malloc_fill_byte=255:max_malloc_fill_size=100000000"


@pytest.fixture(scope="session", autouse=True)
def sanitized_kernels() -> None:
    """In place of the ones that are built."""
    path = Path(os.environ[LIBRARY])
    native._load = functools.cache(lambda: native._open(path, build.sources_hash()))


def compiled(kind: str, compiler: list[str]) -> Path:
    """The library with that sanitizer, unless these sources have one already."""
    library = build.candidates()[-1].with_name(f"{kind}.so")
    if not library.exists():
        with (
            mock.patch.dict(os.environ, CXX=shlex.join([*compiler, *KINDS[kind]])),
            mock.patch.object(build, "_FLAGS", [*build._FLAGS, *FLAGS]),
        ):
            build.build(library)
    return library


def main() -> int:
    """Run pytest once with each."""
    compiler, codes = build.find_compiler(), []
    for kind in KINDS:
        # Before all others, as Python is not built with it; exceptions of torch pass through both.
        first = (f"lib{kind}.so", "libstdc++.so")
        found = [
            subprocess.check_output([*compiler, f"-print-file-name={name}"], text=True).strip()
            for name in first
        ]
        environment = {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": OPTIONS}
        environment[LIBRARY] = str(compiled(kind, compiler))
        command = [sys.executable, "-m", "pytest", "-p", "sanitize", *sys.argv[1:]]
        codes.append(subprocess.call(command, env=os.environ | environment))
    return max(codes, key=abs)


if __name__ == "__main__":
    sys.exit(main())
