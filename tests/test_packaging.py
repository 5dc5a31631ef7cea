"""Wheel, sdist and editable, installed into an environment of their own without network, work.

torch and the other dependencies are those of the environment that runs the tests: a .pth file
shows them to the fresh one, so nothing is downloaded. The wheel is built without a compiler and
the sdist's with whatever there is, so both ways of installing are covered; editable both ways.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from learned_optim import kernels, weights

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = (
    *("learned_optim", "pretrained"),
    *("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"),
)
JUNK = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "*.pyc")

# Becomes sitecustomize.py: every Python process of the test starts with it.
NO_NETWORK = """
import socket

def refuse(*args, **kwargs):
    raise OSError("this test has no network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""

BUILD = """
import sys
import sysconfig
from setuptools import build_meta
print(getattr(build_meta, "build_" + sys.argv[1])(sys.argv[2]))
"""

# Runs in the fresh environment and prints what the test then checks.
USE = """
import hashlib, json, socket, sys
from importlib.metadata import version
from importlib.resources import files

try:
    socket.create_connection(("127.0.0.1", 9))
    sys.exit("the network is not cut")
except OSError as error:
    assert "no network" in str(error)

import torch
import learned_optim
from learned_optim import LearnedOptimizer, kernels, weights
from learned_optim.rules import Adam

def step(**rule):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = LearnedOptimizer(model.parameters(), **rule)
    before = model.weight.detach().clone()
    model(torch.ones(8, 4)).square().mean().backward()
    optimizer.step()
    return (model.weight - before).abs().max().item()

adam = Adam()
adam = weights.in_memory(adam, adam.init_weights(torch.Generator()), name="adam")
bundled = weights.bundled_names()
print(json.dumps({
    "where": learned_optim.__file__,
    "versions": [learned_optim.__version__, version("learned-optim")],
    "typed": files("learned_optim").joinpath("py.typed").is_file(),
    "adam": step(rule=adam),
    "default": step() if bundled else None,
    "bundled": {name: weights.load_bundled(name).sha256 for name in bundled},
    "no_kernels": kernels.why_not(),
}))
"""


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Variables for processes without network, without the caches and the caller's settings."""
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
    offline = {
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_CONFIG_FILE": "/dev/null",
    }
    caches = {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return {**kept, **offline, **caches, "PYTHONPATH": str(folder), **more}


def run(command: list[str | Path], folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copied_sources(folder: Path) -> Path:
    """The shipped part of the tree, without anything that was built in it."""
    target = folder / "sources"
    for name in SHIPPED:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, target / name, ignore=JUNK)
        elif origin.exists():
            target.mkdir(exist_ok=True)
            shutil.copy(origin, target / name)
    return target


def build(kind: str, sources: Path, folder: Path, env: dict[str, str]) -> Path:
    """Build a "wheel" or an "sdist" with the backend that this environment has."""
    folder.mkdir()
    printed = run([sys.executable, "-c", BUILD, kind, folder], sources, env)
    return folder / printed.split()[-1]


def use_installed(source: list[str | Path], folder: Path, **more: str) -> dict[str, Any]:
    """Install into a fresh environment, with pip's arguments `source`, and take a step there."""
    env = environment(folder, **more)
    fresh = folder / "venv"
    venv.create(fresh, with_pip=False, symlinks=True)
    python = fresh / "bin" / "python"
    # Only the path is taken over, not the .pth files in it: the editable install stays out.
    site = next((fresh / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    # Whatever the dependencies' folder has of this package is not touched.
    run([*pip, "install", "--quiet", "--no-deps", "--ignore-installed", *source], folder, env)
    result = json.loads(run([python, "-W", "error", "-c", USE], folder, env))
    result["fresh"] = str(fresh)
    return result


@pytest.fixture(scope="module")
def tools() -> None:
    """What builds and installs is here, or the test is skipped."""
    for name in ("setuptools", "pip"):
        # By its metadata: a search for the modules warns where something imported distutils.
        if not any(metadata.distributions(name=name)):
            pytest.skip(f"{name} is not installed here, and nothing is downloaded in tests")


@pytest.fixture(scope="module")
def built(tools: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The archives: `sdist`, the `wheel` made from the tree, and `from_sdist`."""
    folder = tmp_path_factory.mktemp("packaging")
    env, no_compiler = environment(folder), environment(folder, CXX="/no/compiler")
    sources = copied_sources(folder)
    # What an earlier build in this folder has left is not this one's.
    left = sources / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    (left / "learned_optim").mkdir(parents=True)
    (left / "learned_optim" / "left_over.py").touch()
    shutil.copytree(ROOT / "tests", sources / "tests", ignore=JUNK)
    wheel = build("wheel", sources, folder / "wheel", no_compiler)
    sdist = build("sdist", sources, folder / "sdist", env)
    with tarfile.open(sdist) as archive:
        # Python before 3.11.4 has no filters, and its extractall does not know the argument.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    from_sdist = build("wheel", unpacked, folder / "from_sdist", env)
    return {"sdist": sdist, "wheel": wheel, "from_sdist": from_sdist}


def files_of(wheel: Path) -> dict[str, str]:
    """Name -> sha256 of the files of the package in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: hashlib.sha256(archive.read(name)).hexdigest()
            for name in archive.namelist()
            if ".dist-info/" not in name
        }


def begun_with() -> set[Path]:
    """The folders of weights that recipes of bundled rules start from or learn from."""
    found = set()
    for recipe in (ROOT / "pretrained").glob("*/recipe.toml"):
        named = re.findall(r'^(?:start|learned) = "(.+)"$', recipe.read_text(), re.MULTILINE)
        found |= {(recipe.parent / name).resolve() for name in named}
    return found


def expected_files() -> dict[str, str]:
    """What must be in a wheel: all modules, and the rules' files."""
    modules = [*(ROOT / "learned_optim").rglob("*.py"), ROOT / "learned_optim" / "py.typed"]
    listed = ROOT / "pretrained" / "SHA256SUMS"
    rules = [line.split()[1] for line in listed.read_text().splitlines()] if listed.exists() else []
    origins = {str(path.relative_to(ROOT)): path for path in modules}
    origins |= {f"learned_optim/pretrained/{name}": ROOT / "pretrained" / name for name in rules}
    if listed.exists():
        origins["learned_optim/pretrained/SHA256SUMS"] = listed
    for folder in begun_with():
        for name in ("config.json", "model.safetensors"):
            path = folder / name
            origins[f"learned_optim/{path.relative_to(ROOT)}"] = path
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in origins.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "from_sdist"])
def test_a_wheel_holds_every_module_and_every_bundled_rule_and_nothing_foreign(
    built: dict[str, Path], kind: str
):
    found, expected = files_of(built[kind]), expected_files()
    assert {name: found.get(name) for name in expected} == expected
    assert {name.split("/")[0] for name in found} == {"learned_optim"}
    assert not [name for name in found if name.endswith((".pyc", ".pt", "left_over.py"))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "from_sdist"])
def test_an_installed_wheel_takes_a_step_without_network(
    built: dict[str, Path], kind: str, tmp_path: Path
):
    result = use_installed([built[kind]], tmp_path)
    assert result["where"].startswith(result["fresh"])
    assert result["versions"][0] == result["versions"][1]
    assert result["typed"]
    assert result["adam"] == pytest.approx(1e-3, rel=1e-3)
    assert result["default"] is None or result["default"] > 0
    for name, sha256 in result["bundled"].items():
        weights = ROOT / "pretrained" / name / "model.safetensors"
        assert hashlib.sha256(weights.read_bytes()).hexdigest() == sha256
    if kind == "wheel":
        assert result["no_kernels"], "built without a compiler, so there are none"


@pytest.mark.slow
def test_a_wheel_for_any_system_has_no_kernels(tools: None, tmp_path: Path):
    env = environment(tmp_path, LEARNED_OPTIM_WHEEL="any")
    wheel = build("wheel", copied_sources(tmp_path), tmp_path / "wheel", env)
    assert wheel.name.endswith("-py3-none-any.whl")
    found, expected = files_of(wheel), expected_files()
    assert {name: found.get(name) for name in expected} == expected
    assert not [name for name in found if name.endswith(".so")]


@pytest.mark.slow
def test_a_wheel_for_an_unknown_system_is_refused_by_name(tools: None, tmp_path: Path):
    env = environment(tmp_path, LEARNED_OPTIM_WHEEL="amiga")
    with pytest.raises(AssertionError, match=r"manylinux_2_17_x86_64.*'amiga'"):
        build("wheel", copied_sources(tmp_path), tmp_path / "wheel", env)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [True, False])
def test_an_editable_install_runs_the_tree_and_sees_its_changes(
    tools: None, compiler: bool, tmp_path: Path
):
    sources = copied_sources(tmp_path)
    editable = ["--no-build-isolation", "--editable", sources]
    more = {} if compiler else {"CXX": "/no/compiler"}
    result = use_installed(editable, tmp_path, **more)
    assert result["where"] == str(sources / "learned_optim" / "__init__.py")
    assert result["adam"] == pytest.approx(1e-3, rel=1e-3)
    assert set(result["bundled"]) == set(weights.bundled_names())
    if not compiler:
        assert result["no_kernels"], "built without a compiler, so there are none"
    elif not kernels.why_not():
        assert result["no_kernels"] is None, "where the suite has kernels, this install has them"
    (sources / "learned_optim" / "fresh.py").write_text("NUMBER = 7\n")
    python = Path(result["fresh"]) / "bin" / "python"
    use = "from learned_optim.fresh import NUMBER; print(NUMBER)"
    assert run([python, "-c", use], tmp_path, environment(tmp_path)) == "7\n"


@pytest.mark.slow
def test_the_sdist_holds_what_its_wheel_is_built_from(built: dict[str, Path]):
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names
    sources = ROOT.glob("learned_optim/kernels/src/*")
    assert {str(path.relative_to(ROOT)) for path in sources} <= names


@pytest.mark.slow
def test_the_sdist_holds_no_tests_as_it_lacks_what_they_need(built: dict[str, Path]):
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert not [name for name in names if name.startswith("tests")]
