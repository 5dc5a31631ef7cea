"""Kill a meta-training run again and again: does it end where an unbroken one ends, bit for bit?

    python -m benchmarks.fault_test            about two minutes on a machine at rest
    python -m benchmarks.fault_test --kills 3

Method: a small recipe (an LSTM of four units on the paper's quadratics) runs once undisturbed. The
same recipe then runs in another folder in processes that get SIGKILL, which no program can catch,
at random moments drawn from a seed: every fourth while the process starts and loads its
checkpoint, the others while it trains, after a random part of a time that is measured on the way so
that the kills spread over the whole run. The same command goes on from what is there. Should a run
reach its end before all kills are spent, another starts. At the end of each, everything in the
checkpoint but the wall-clock, and the exported weights, must equal the unbroken run's.
Writes results/fault_test.json.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import RESULTS, provenance, write_json
from learned_optim.meta_training import checkpoint
from learned_optim.weights import load_folder

ROOT = Path(__file__).resolve().parent.parent
SEED = 0
STARTING = 4  # each so many-th kill falls before the first step of its process
SPREAD = 1.6  # longest life, in shares of what is left of the run: below 2, kills meet no end
RECIPE = """\
name = "fault-test"
seed = 3
stagger = true
checkpoint_minutes = {minutes}
[rule]
name = "l2l"
layers = 1
hidden = 4
[[tasks]]
family = "quadratic"
runs = 4
workers = 2
[estimator]
name = "{estimator}"
unroll = 5
[horizon]
name = "log_uniform"
low = 10
high = 40
[outer]
steps = {steps}
lr = 0.01
warmup = 10
final_lr = 0.1
clip = 1.0
ema = 0.9
[curriculum]
factors = [1, 2]
patience = 2
[validation]
every = 50
runs = 4
steps = 10
"""


@dataclass(frozen=True)
class Plan:
    """The size of the test.

    Attributes:
        kills: SIGKILLs.
        steps: outer steps of a run.
        interval_seconds: between two checkpoints.
        estimator: of the recipe.
    """

    kills: int = 20
    steps: int = 300
    interval_seconds: float = 0.2
    estimator: str = "pes"


@dataclass
class Kill:
    """One death.

    Attributes:
        number: from 1.
        run: which of the runs, from 1.
        moment: "starting" or "training".
        seconds: after the start of the process, or of its training.
        before: outer steps in the checkpoint when the process started.
        after: and when it was dead.
        checkpoint_age: seconds from the last checkpoint to the kill: the work that was lost.
        torn: unfinished temporary files that the kill left behind.
    """

    number: int
    run: int
    moment: str
    seconds: float
    before: int
    after: int
    checkpoint_age: float | None
    torn: int


def launch(recipe: Path, folder: Path) -> subprocess.Popen[bytes]:
    """A process that starts the run, or goes on with it."""
    command = [sys.executable, "-m", "learned_optim.meta_training", str(recipe), "--output"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(folder)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def steps_done(folder: Path) -> int:
    """Outer steps in the checkpoint, 0 without one; raises if it can not be read."""
    path = folder / "checkpoint.pt"
    return int(checkpoint.load(path)["step"]) if path.exists() else 0


def _events(folder: Path) -> int:
    return len(list(folder.glob("events.*")))


def _wait_for_training(process: subprocess.Popen[bytes], folder: Path, before: int) -> None:
    """Until the process opens its log, which it does right before it trains, or ends."""
    while process.poll() is None and _events(folder) <= before:
        time.sleep(0.005)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process still runs after `seconds`."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def strike(recipe: Path, folder: Path, moment: str, seconds: float) -> dict[str, Any] | None:
    """Start a process and kill it; None if it reached the end of the run before."""
    before, events = steps_done(folder), _events(folder)
    torn = len(list(folder.glob(".checkpoint.pt.*")))
    process = launch(recipe, folder)
    try:
        if moment == "training":
            _wait_for_training(process, folder, events)
        alive = _wait(process, seconds)
    finally:
        process.kill()
        killed_at = time.time()
        code = process.wait()
    if not alive:
        if code != 0:
            raise RuntimeError(f"a process failed by itself with status {code}")
        return None
    path = folder / "checkpoint.pt"
    return {
        "before": before,
        "after": steps_done(folder),
        "checkpoint_age": killed_at - path.stat().st_mtime if path.exists() else None,
        "torn": len(list(folder.glob(".checkpoint.pt.*"))) - torn,
    }


def leaves(tree: object, path: str = "") -> dict[str, object]:
    """Every leaf of a checkpoint but the wall-clock, tensors as dtype, shape and bytes."""
    if isinstance(tree, Tensor):
        return {path: (str(tree.dtype), tuple(tree.shape), tree.numpy().tobytes())}
    if not isinstance(tree, Mapping | list | tuple):
        return {} if path.endswith("/seconds") else {path: tree}
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    found: dict[str, object] = {}
    for key, value in items:
        found |= leaves(value, f"{path}/{key}")
    return found


def differing(folder: Path, whole: Path) -> list[str]:
    """Names of what differs between two finished runs; empty if they are equal to the bit."""
    ours, theirs = (leaves(checkpoint.load(each / "checkpoint.pt")) for each in (folder, whole))
    found = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
    if load_folder(folder).sha256 != load_folder(whole).sha256:
        found.append("model.safetensors")
    return sorted(found)


def finish(recipe: Path, folder: Path) -> float:
    """Run to the end undisturbed; seconds."""
    start = time.monotonic()
    code = launch(recipe, folder).wait()
    if code != 0:
        raise RuntimeError(f"the run in {folder} failed with status {code}")
    return time.monotonic() - start


class Pace:
    """Draws the moments so that the kills spread over the run, however fast the machine is."""

    def __init__(self, plan: Plan, unbroken: float) -> None:
        self.plan, self.rng = plan, random.Random(SEED)
        self.starting = 2.0  # seconds until a process trains
        self.gained, self.lived = float(plan.steps), unbroken

    def draw(self, number: int, done: int) -> tuple[str, float]:
        """Of kill `number`, with `done` steps in the checkpoint: while what, after which time."""
        if number % STARTING == 0:
            return "starting", self.rng.uniform(0, self.starting)
        share = max(1, self.plan.steps - done) / (self.plan.kills + 1 - number)
        return "training", self.rng.uniform(0, SPREAD * share * self.lived / self.gained)

    def see(self, kill: Kill, lasted: float) -> None:
        """Learn from a kill how long things take."""
        if kill.moment == "training" and kill.after > kill.before:
            self.starting = lasted - kill.seconds
            self.gained, self.lived = float(kill.after - kill.before), kill.seconds


def run(plan: Plan, folder: Path, report: bool = True) -> dict[str, Any]:
    """The whole test in an empty folder."""
    recipe = folder / "recipe.toml"
    values = {"minutes": plan.interval_seconds / 60, "steps": plan.steps}
    recipe.write_text(RECIPE.format(**values, estimator=plan.estimator), encoding="utf-8")
    unbroken = finish(recipe, folder / "whole")
    pace = Pace(plan, unbroken)
    kills: list[Kill] = []
    differences: list[list[str]] = []
    while len(kills) < plan.kills:
        current = folder / str(len(differences) + 1)
        moment, seconds = pace.draw(len(kills) + 1, steps_done(current))
        begun = time.monotonic()
        found = strike(recipe, current, moment, seconds)
        if found is None:
            differences.append(differing(current, folder / "whole"))
            continue
        kills.append(Kill(len(kills) + 1, len(differences) + 1, moment, seconds, **found))
        pace.see(kills[-1], time.monotonic() - begun)
        if report:
            print(line(kills[-1]), flush=True)
    current = folder / str(len(differences) + 1)
    finish(recipe, current)
    differences.append(differing(current, folder / "whole"))
    weights = checkpoint.load(folder / "whole" / "checkpoint.pt")["weights"]
    return {
        **provenance(),
        "seed": SEED,
        "plan": asdict(plan),
        "meta_parameters": sum(value.numel() for value in weights.values()),
        "unbroken_seconds": unbroken,
        "kills": [asdict(kill) for kill in kills],
        "runs": len(differences),
        "runs_bit_equal": sum(not found for found in differences),
        "leaves_compared": len(leaves(checkpoint.load(folder / "whole" / "checkpoint.pt"))),
        "differing": differences,
    }


def line(kill: Kill) -> str:
    """A row of the table."""
    age = "-" if kill.checkpoint_age is None else f"{kill.checkpoint_age:.2f}"
    return (
        f"{kill.number:5}{kill.run:5}  {kill.moment:10}{kill.seconds:8.2f}"
        f"{kill.before:8}{kill.after:8}{age:>8}{kill.torn:6}"
    )


COLUMNS = ("while", "after s", "step", "saved", "age s", "torn")
HEADER = "{:>5}{:>5}  {:10}{:>8}{:>8}{:>8}{:>8}{:>6}".format("kill", "run", *COLUMNS)


def main() -> None:
    """Kill, compare, print, write."""
    parser = argparse.ArgumentParser(description="Kill meta-training and resume it.")
    parser.add_argument("--kills", type=int, default=Plan.kills, help="fewer are not written")
    plan = Plan(kills=parser.parse_args().kills)
    torch.set_num_threads(1)
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        content = run(plan, Path(folder))
    print(f"{content['runs_bit_equal']} of {content['runs']} runs bit-equal to the unbroken one")
    if plan.kills == Plan.kills:
        write_json(RESULTS / "fault_test.json", content)
    if content["runs_bit_equal"] != content["runs"]:
        sys.exit(f"not equal: {content['differing']}")


if __name__ == "__main__":
    main()
