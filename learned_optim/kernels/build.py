"""Compiles the kernels: `python -m learned_optim.kernels.build`.

Needs a C++17 compiler that knows GCC's vector extensions (g++ or clang++), nothing else: no torch
headers, no C++ run-time library. One shared library holds the kernels once for each instruction
set. For other machines, and for wheels that older systems can load, the compiler is zig's. Standard
library only, because the package's own build loads this file before torch is there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).resolve().parent / "src"
LIBRARY = "_native.so"

_FLAGS = [
    "-O3",
    "-std=gnu++17",
    "-fPIC",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
]
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
_AVX512 = [*_AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
_X86_LEVELS = {"avx2": _AVX2, "avx512": _AVX512}


class Target(NamedTuple):
    """A machine to compile for.

    Attributes:
        machine: as `platform.machine()` has it there.
        system: as `sys.platform` has it there.
        zig: what zig calls it, with the oldest system that can load the library; None where the
            compiler is this machine's own.
    """

    machine: str
    system: str
    zig: str | None = None


# By the platform tag of a wheel. Torch has wheels for Windows too, but the kernels want POSIX.
WHEELS: dict[str, Target] = {
    "manylinux_2_17_x86_64": Target("x86_64", "linux", "x86_64-linux-gnu.2.17"),
    "manylinux_2_17_aarch64": Target("aarch64", "linux", "aarch64-linux-gnu.2.17"),
    "macosx_11_0_arm64": Target("arm64", "darwin", "aarch64-macos.11.0"),
}


class BuildError(RuntimeError):
    """The kernels could not be compiled; the message says why and what to do."""


def sources_hash() -> str:
    """First 16 hex digits of the SHA-256 over the C++ sources, which the library carries."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".h", ".cpp"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def cache_folder() -> Path | None:
    """Where the library goes when the package's own folder cannot be written.

    None where nobody says where caches or homes are.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return None
    return Path(base) / "learned_optim" / sources_hash()


def candidates() -> list[Path]:
    """Where the library may be, in the order in which it is looked for."""
    folders = [Path(__file__).resolve().parent, cache_folder()]
    return [folder / LIBRARY for folder in folders if folder is not None]


def find_compiler() -> list[str]:
    """`$CXX`, else the first of g++, clang++, c++ on the path, else zig's, as a command.

    Raises:
        BuildError: without one, for one that is no command, or on Windows.
    """
    if os.name == "nt":
        raise BuildError("the C++ kernels need a POSIX system; the torch backend works here")
    named = os.environ.get("CXX", "")
    try:
        chosen = shlex.split(named)
    except ValueError as error:
        raise BuildError(f"$CXX is no command ({error}): {named}") from error
    if chosen:
        return chosen
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    here = [t.zig for t in WHEELS.values() if (t.machine, t.system) == this_machine()[:2]]
    if here and here[0] and has_zig():
        return zig(here[0])
    raise BuildError(
        "no C++ compiler found: install g++ or clang++, name one in $CXX, or pip install ziglang, "
        "which brings one along"
    )


def this_machine() -> Target:
    """Compiled for by whatever `find_compiler` finds."""
    return Target(platform.machine(), sys.platform)


def has_zig() -> bool:
    """Whether the package ziglang is here."""
    return importlib.util.find_spec("ziglang") is not None


def zig(target: str) -> list[str]:
    """The compiler of the package ziglang, as a command.

    Raises:
        BuildError: without that package.
    """
    if not has_zig():
        raise BuildError(f"to compile for {target} takes the package ziglang: pip install ziglang")
    return [sys.executable, "-m", "ziglang", "c++", "-target", target]


def _run(command: list[str]) -> None:
    try:
        # In whatever encoding it complains.
        done = subprocess.run(command, capture_output=True, errors="replace", check=False)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run ({error}): check $CXX") from error
    if done.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stderr[-2000:].strip()}")


def _commands(compiler: list[str], machine: str, folder: Path) -> dict[Path, list[str]]:
    """What makes each object file; none needs another."""
    x86 = machine.lower() in ("x86_64", "amd64")
    dispatch = [f'-DSOURCES_HASH="{sources_hash()}"', *(["-DWITH_X86"] if x86 else [])]
    parts = {"dispatch": ("dispatch.cpp", dispatch)}
    for name, flags in {"baseline": [], **(_X86_LEVELS if x86 else {})}.items():
        parts[name] = ("kernels.cpp", [*flags, f"-DTABLE=table_{name}"])
    commands = {}
    for name, (source, flags) in parts.items():
        target = folder / f"{name}.o"
        files = ["-c", str(SOURCES / source), "-o", str(target)]
        commands[target] = [*compiler, *_FLAGS, *flags, *files]
    return commands


def _compile(compiler: list[str], target: Target, folder: Path) -> Path:
    commands = _commands(compiler, target.machine, folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # a compiler for each instruction set
        list(pool.map(_run, commands.values()))
    objects = [str(target) for target in commands]
    library = folder / LIBRARY
    options = ["-Wl,--as-needed"] if target.system == "linux" else []
    if "ziglang" in compiler:
        options.append("-s")  # what is there for debuggers is four fifths of it
    _run([*compiler, "-shared", *objects, "-o", str(library), "-pthread", *options])
    return library


def build(path: Path | None = None, target: Target | None = None) -> Path:
    """Compile, and put the library at `path`; two builds at once do not disturb each other.

    Args:
        path: a file; by default next to this file, or in `cache_folder()` where that cannot be
            written.
        target: the machine; by default this one.

    Returns:
        Where the library is now.

    Raises:
        BuildError: without a compiler, when it fails, or where nothing can be written.
    """
    if path is None:
        beside, *cached = candidates()
        path = beside if os.access(beside.parent, os.W_OK) or not cached else cached[0]
    target = target or this_machine()
    compiler = zig(target.zig) if target.zig else find_compiler()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".build-") as folder:
            _compile(compiler, target, Path(folder)).replace(path)
    except OSError as error:
        raise BuildError(
            f"cannot write to {path.parent} ({error}): XDG_CACHE_HOME can name another folder"
        ) from error
    return path


if __name__ == "__main__":
    try:
        sys.stdout.write(f"built {build()}\n")
    except BuildError as problem:
        sys.exit(f"error: {problem}")
