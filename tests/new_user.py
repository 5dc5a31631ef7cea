"""A new user's whole path: install the wheel, train, learn a rule, publish it, load it elsewhere.

    PYTHONPATH=. python tests/new_user.py            with this environment's dependencies
    PYTHONPATH=. python tests/new_user.py --fresh    with those of the package index

Every command is what a user would type. The Hub is one on the loopback interface. Prints what is
typed and what comes back, and with `--output` writes it down for the documentation.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import NamedTuple

import torch
from loopback_hub import TOKEN, LoopbackHub

from benchmarks.results import provenance, write_json

ROOT = Path(__file__).resolve().parent.parent
BUILD = "from setuptools import build_meta as b; import sys; print(b.build_wheel(sys.argv[1]))"

TRAIN = """\
import sys, torch
from sklearn.datasets import load_digits
from learned_optim import LearnedOptimizer

rule = sys.argv[1] if len(sys.argv) > 1 else "default"
pixels, classes = load_digits(return_X_y=True)
x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(classes)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = LearnedOptimizer(model.parameters(), rule)
for step in range(100):
    chosen = torch.randint(1437, (64,))
    loss = torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
right = (model(x[1437:]).argmax(-1) == y[1437:]).float().mean()
print(f"{optimizer.param_groups[0]['rule']}: test accuracy {right:.1%}")
"""

RECIPE = """\
name = "mine"

[rule]
name = "l2l"
layers = 1
hidden = 8

[[tasks]]
family = "mlp_classification"
dataset = "digits"
depth = 1
width = 16
activation = "relu"
runs = 4

[estimator]
name = "tbptt"
unroll = 20

[outer]
steps = {outer}
lr = 0.01
clip = 10.0

[validation]
every = {every}
runs = 2
steps = 50
"""


class Typed(NamedTuple):
    """A command as it was typed, and what came back."""

    command: str
    output: str
    seconds: float


class Terminal:
    """Types commands in a folder and keeps the transcript."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.hidden: dict[str, str] = {str(folder.resolve()): "/home/you"}
        self.typed: list[Typed] = []

    def type(self, command: str) -> str:
        """Run a command, which must succeed; the output, both streams."""
        start = time.perf_counter()
        run = subprocess.run(
            shlex.split(command),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        # Of a progress bar only its end.
        output = re.sub(r"[^\n]*\r", "", run.stdout).strip()
        for secret, public in self.hidden.items():
            output = output.replace(secret, public)
        self.typed.append(Typed(command, output, round(time.perf_counter() - start, 1)))
        sys.stdout.write(f"$ {command}\n{output}\n\n")
        sys.stdout.flush()
        assert run.returncode == 0, f"{command} ended with {run.returncode}"
        return output


def build_wheel(folder: Path) -> Path:
    """The wheel of this tree; what the build leaves in the tree goes to the folder instead."""
    sources = folder / "sources"
    sources.mkdir()
    for name in (
        "learned_optim",
        "pretrained",
        "pyproject.toml",
        "setup.py",
        "README.md",
        "LICENSE",
    ):
        subprocess.run(["cp", "-R", str(ROOT / name), str(sources)], check=True)
    printed = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)],
        cwd=sources,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    ).stdout
    return folder / printed.split()[-1]


def walk(folder: Path, *, fresh: bool, outer: int) -> list[Typed]:
    """The path; an assertion fails where a user would be stuck."""
    wheel = build_wheel(folder)
    venv.create(folder / "venv", with_pip=fresh, symlinks=True)
    binaries = folder / "venv" / "bin"
    if not fresh:
        site = next((folder / "venv" / "lib").glob("python*/site-packages"))
        (site / "borrowed.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")
    home = folder / "you"
    home.mkdir()
    kept = {
        key: value
        for key, value in os.environ.items()
        if key.startswith(("PIP_", "LANG", "SSL_", "OMP_")) or key == "HOME"
    }
    with LoopbackHub() as hub:
        at_home = {
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
        }
        terminal = Terminal(home, kept | at_home)
        terminal.hidden |= {str(folder.resolve()): "", hub.url: "https://hub"}
        install(terminal, wheel, fresh)
        terminal.type("learned-optim list")
        terminal.type("learned-optim info default")
        (home / "train.py").write_text(TRAIN)
        assert "default: test accuracy" in terminal.type("python train.py")
        recipe = RECIPE.format(outer=outer, every=max(1, outer // 4))
        (home / "recipe.toml").write_text(recipe)
        learned = terminal.type("learned-optim meta-train recipe.toml --quiet")
        sha256 = re.findall(r"sha256 (\w{64})", learned)[-1]
        published = terminal.type("learned-optim publish runs/mine user/mine --tag v1")
        address = re.findall(r"rule='(user/mine@\w{40})'", published)[-1]
        # Another machine: no token, nothing in its cache, nothing of the run.
        elsewhere = {**at_home, "HF_HOME": str(folder / "elsewhere")}
        del elsewhere["HF_TOKEN"]
        (folder / "they").mkdir()
        (folder / "they" / "train.py").write_text(TRAIN)
        other = Terminal(folder / "they", kept | elsewhere)
        other.hidden = terminal.hidden
        assert f"sha256: {sha256}" in other.type("learned-optim info user/mine@v1")
        assert "mine: test accuracy" in other.type(f"python train.py {address}")
    return terminal.typed + other.typed


def install(terminal: Terminal, wheel: Path, fresh: bool) -> None:
    """`pip install` of the wheel: with its dependencies, or only itself with the tests' pip."""
    terminal.hidden |= {str(wheel.parent): "."}
    if fresh:
        terminal.type("pip install -qq torch==2.13.0")
        terminal.type(f"pip install -qq '{wheel}[meta-training]'")
    else:
        python = terminal.environment["PATH"].split(os.pathsep)[0] + "/python"
        pip = f"{sys.executable} -m pip --python {python} install --quiet --no-deps"
        terminal.type(f"{pip} {wheel}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fresh", action="store_true", help="let pip install the dependencies")
    parser.add_argument("--outer-steps", type=int, default=100, help="of meta-training (100)")
    parser.add_argument("--output", type=Path, help="write the transcript as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        typed = walk(Path(name), fresh=arguments.fresh, outer=arguments.outer_steps)
    if arguments.output is not None:
        lines = [one._asdict() for one in typed]
        for line in lines:  # the wheel lies in a folder that is gone
            line["command"] = re.sub(r"'?\S*/(learned_optim-)", r"'\1", str(line["command"]))
        command = {"command": "python tests/new_user.py --fresh"}
        write_json(arguments.output, provenance() | command | {"typed": lines})


if __name__ == "__main__":
    main()
