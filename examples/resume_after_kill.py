"""A training run that is killed half-way, and goes on from its checkpoint as if it had not been.

The script trains once without a break; once more, killing itself (SIGKILL: nothing is cleaned up);
and a third time, from the checkpoint. First and last end with the same bits.

    python examples/resume_after_kill.py
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import digits
import torch
from torch.nn import functional

from learned_optim import LearnedOptimizer

EVERY = 10


def save(path: Path, content: dict[str, object]) -> None:
    """Write beside the old file and rename: a kill leaves the old checkpoint or the new one."""
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    temporary.replace(path)


def train(total: int, folder: Path, kill_at: int | None) -> None:
    """Train from the checkpoint in the folder, or from the start."""
    data, path = digits.load(), folder / "checkpoint.pt"
    torch.manual_seed(0)
    model = digits.network()
    optimizer = LearnedOptimizer(model.parameters(), total_steps=total)
    done = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["done"]
        print(f"resumed at step {done}", flush=True)
    for step, (x, y) in enumerate(digits.minibatches(data, total), start=1):
        if step <= done:
            continue
        if step == kill_at:
            print(f"killed in step {step}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step % EVERY == 0 or step == total:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": step}
            save(path, state)
    print(f"test accuracy {digits.accuracy(model, data):.1%}", flush=True)


def final_weights(folder: Path) -> list[torch.Tensor]:
    """The parameters in the last checkpoint of a folder."""
    return list(torch.load(folder / "checkpoint.pt", weights_only=True)["model"].values())


def show(total: int) -> None:
    """The three runs, each in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        whole, broken = Path(name, "whole"), Path(name, "broken")
        half = total // 2 + EVERY // 2
        for folder, more in ((whole, []), (broken, ["--kill-at", str(half)]), (broken, [])):
            folder.mkdir(exist_ok=True)
            command = [sys.executable, __file__, "--steps", str(total), "--folder", str(folder)]
            subprocess.run([*command, *more], check=not more)
        pairs = zip(final_weights(whole), final_weights(broken), strict=True)
        same = all(torch.equal(one, other) for one, other in pairs)
    print(f"with and without the kill: {'the same bits' if same else 'DIFFERENT'}")
    sys.exit(0 if same else 1)


def main() -> None:
    """One run if a folder is given, else the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--kill-at", type=int)
    arguments = parser.parse_args()
    if arguments.folder is None:
        show(arguments.steps)
    else:
        train(arguments.steps, arguments.folder, arguments.kill_at)


if __name__ == "__main__":
    main()
