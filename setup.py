"""Compiles the C++ kernels with the package. Everything else is in pyproject.toml.

Without a compiler the install goes on with a note, and `learned_optim.kernels.why_not()` explains.
With `LEARNED_OPTIM_WHEEL`, a key of `WHEELS` in `learned_optim/kernels/build.py` or "any", a wheel
is for that platform, whatever machine builds it: see `make wheels`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

# The platform tag of the wheel to build. Without it the kernels are for this machine alone, by
# whatever compiler it has; "any" has no kernels.
WHEEL = os.environ.get("LEARNED_OPTIM_WHEEL")


def load_build() -> ModuleType:
    """`learned_optim/kernels/build.py` by its path: importing the package would need torch."""
    path = Path(__file__).resolve().parent / "learned_optim" / "kernels" / "build.py"
    spec = importlib.util.spec_from_file_location("kernels_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildKernels(build_ext):
    """One library for all instruction sets, which setuptools' flags per extension cannot say."""

    def build_extension(self, ext: Extension) -> None:
        """Compile; `optional` below turns a failure into setuptools' warning."""
        build = load_build()
        path = Path(self.get_ext_fullpath(ext.name))
        try:
            build.build(path, build.WHEELS[WHEEL] if WHEEL else None)
        except build.BuildError as error:
            raise CompileError(f"the C++ kernels are left out: {error}") from error

    def get_ext_filename(self, fullname: str) -> str:
        """No Python version in the name: the library knows nothing of Python."""
        return str(Path(*fullname.split("."))) + ".so"


class BuildPackage(build_py):
    """The package as it is now: setuptools keeps what earlier builds in this folder left."""

    def run(self) -> None:
        """Build, from nothing."""
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "learned_optim", ignore_errors=True)
        super().run()


class PlatformWheel(bdist_wheel):
    """For this platform and any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """`py3-none-<platform>`."""
        return "py3", "none", WHEEL or super().get_tag()[2]


def extensions() -> list[Extension]:
    """The kernels; a wheel that was asked for must have them."""
    if WHEEL == "any":
        return []
    if WHEEL and WHEEL not in (known := load_build().WHEELS):
        raise SystemExit(f"LEARNED_OPTIM_WHEEL must be any or one of {', '.join(known)}: {WHEEL!r}")
    sources = ["learned_optim/kernels/src/dispatch.cpp", "learned_optim/kernels/src/kernels.cpp"]
    return [Extension("learned_optim.kernels._native", sources=sources, optional=not WHEEL)]


setup(
    ext_modules=extensions(),
    cmdclass={
        "build_ext": BuildKernels,
        "build_py": BuildPackage,
        "bdist_wheel": PlatformWheel,
    },
)
