"""Run every example at its full size, and keep what it printed and the processor time it took.

    python -m benchmarks.examples_output          all; needs transformers, accelerate, lightning
    python -m benchmarks.examples_output fsdp2    only these, into the file that is there

Writes results/examples.json, which the documentation shows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.results import RESULTS, provenance, write_json

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = RESULTS / "examples.json"
NAMES = (
    "plain_loop",
    "groups_and_schedule",
    "fine_tune",
    "resume_after_kill",
    "hf_trainer",
    "with_accelerate",
    "with_lightning",
    "fsdp2",
    "meta_train",
)
LAUNCHERS = {"fsdp2": (["-m", "torch.distributed.run", "--nproc-per-node", "2"], "torchrun")}


def run(name: str) -> dict[str, object]:
    """The command as a user types it, its standard output, and the processor time."""
    options, shown = LAUNCHERS.get(name, ([], "python"))
    command = [sys.executable, "-W", "ignore", *options, f"examples/{name}.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    typed = " ".join([shown, *options[2:], f"examples/{name}.py"])
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"$ {typed}\n{done.stdout}({seconds:.0f} s of processor time)\n")
    return {
        "name": name,
        "command": typed,
        "output": done.stdout.strip(),
        "cpu_seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], help="examples (all)")
    chosen = parser.parse_args().names or NAMES
    rows = {}
    if OUTPUT.exists():
        rows = {row["name"]: row for row in json.loads(OUTPUT.read_text())["examples"]}
    command = {"command": "python -m benchmarks.examples_output"}
    for name in chosen:
        rows[name] = run(name)
        kept = [rows[name] for name in NAMES if name in rows]
        write_json(OUTPUT, provenance() | command | {"examples": kept})


if __name__ == "__main__":
    main()
