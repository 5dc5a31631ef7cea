"""What goes to a package index, built on one machine and looked at: `make wheels`.

    PYTHONPATH=tests python tests/wheels.py dist

A wheel for each platform of `kernels.build.WHEELS`, with the kernels that zig's clang makes for
it, one for any other, without kernels, and the sdist. Then what can be seen of them here: that a
package index takes them (twine), that the systems that a tag promises can load its library
(auditwheel); that this machine's, installed into a fresh environment, has kernels that take the
steps that torch alone takes, at each level; that arm64's are those that `make arm64` tests. What
cannot be seen: a macOS that loads one.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import arm64
from test_packaging import ROOT, environment, run, use_installed

from learned_optim.kernels import build, native

ANY = "any"
MACH_O = 0xFEEDFACF.to_bytes(4, "little")  # of 64 bits
# Runs where a wheel was installed: at which level, and how far its kernels' step is from torch's.
USE = """
import torch
from learned_optim import LearnedOptimizer
from learned_optim.kernels import native

def stepped(rule, fused):
    draw = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=draw) for shape in ((1000,), (300, 200))]
    optimizer = LearnedOptimizer(params, rule=rule, fused=fused)
    for param in params:
        param.grad = torch.randn(param.shape, generator=draw)
    optimizer.step()
    return torch.cat([param.flatten() for param in params])

rules = "default", "l2l-mnist"
far = max((stepped(rule, True) - stepped(rule, False)).abs().max() for rule in rules)
print(native.LEVELS[native.level()], float(far))
"""


def make(folder: Path) -> dict[str, Path]:
    """Platform tag -> its wheel; beside them the sdist."""
    for old in (*folder.glob("*.whl"), *folder.glob("*.tar.gz")):
        old.unlink()
    pack = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*pack, "--sdist", ROOT], check=True)
    for tag in (ANY, *build.WHEELS):
        chosen = {**os.environ, "LEARNED_OPTIM_WHEEL": tag}
        subprocess.run([*pack, "--wheel", ROOT], check=True, env=chosen)
    return {path.stem.rpartition("-")[2]: path for path in folder.glob("*.whl")}


def kernels_in(wheel: Path) -> bytes | None:
    """The compiled library."""
    name = f"learned_optim/kernels/{build.LIBRARY}"
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name) if name in archive.namelist() else None


def check_tags(wheels: dict[str, Path]) -> None:
    """Each has the library of its platform, and a Linux's can be loaded where its tag says."""
    assert wheels.keys() == {ANY, *build.WHEELS}, [*wheels]
    assert kernels_in(wheels[ANY]) is None
    for tag, target in build.WHEELS.items():
        library = kernels_in(wheels[tag])
        assert library is not None, tag
        if target.system == "darwin":
            assert library.startswith(MACH_O), tag
            continue
        show = [sys.executable, "-m", "auditwheel", "show", str(wheels[tag])]
        said = " ".join(subprocess.check_output(show, text=True).split())
        assert f'consistent with the following platform tag: "{tag}"' in said, said
    tested = arm64.linux().read_bytes()
    assert kernels_in(wheels["manylinux_2_17_aarch64"]) == tested, "not what `make arm64` tests"


def check_installed(wheels: dict[str, Path]) -> None:
    """The kernels of this machine's wheel take the steps of torch alone, at each level."""
    here = f"manylinux_2_17_{platform.machine()}"
    if sys.platform != "linux" or here not in wheels:
        sys.stdout.write("none of the wheels is for this machine: not installed\n")
        return
    with tempfile.TemporaryDirectory() as name:
        found = {}
        for tag in (ANY, here):
            folder = Path(name, tag)
            folder.mkdir()
            found[tag] = use_installed([wheels[tag]], folder, CXX="/no/compiler")
        assert "not built" in found[ANY]["no_kernels"], found[ANY]
        assert found[here]["no_kernels"] is None, found[here]
        python, folder = Path(found[here]["fresh"], "bin", "python"), Path(name, here)
        for level in native.LEVELS[: native.best_level() + 1]:
            env = environment(folder, LEARNED_OPTIM_ISA=level)
            used, far = run([python, "-c", USE], folder, env).split()
            assert (used, float(far) < 1e-5) == (level, True), (level, used, far)
            sys.stdout.write(f"{here}: its kernels for {level} are within {far} of torch's step\n")


def main() -> None:
    """Build, and check."""
    parser = argparse.ArgumentParser(description="Wheels and sdist, built and checked.")
    parser.add_argument("folder", type=Path, help="where they go, and no others stay")
    wheels = make(parser.parse_args().folder.resolve())
    files = sorted(str(path) for path in next(iter(wheels.values())).parent.iterdir())
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    check_tags(wheels)
    check_installed(wheels)
    sys.stdout.write("\n".join(f"{Path(f).stat().st_size / 1e6:5.2f} MB  {f}" for f in files))
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
