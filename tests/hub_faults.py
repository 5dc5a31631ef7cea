"""What a user sees when something goes wrong: every fault is really provoked, and written down.

    PYTHONPATH=. python tests/hub_faults.py

A loopback Hub serves a rule to the real client and fails in each of the ways; then come faults of
files, of arguments and of training. Each case runs in a process of its own, as a user's would.
Writes `benchmarks/results/faults.json`, which the documentation shows; a test runs some of the
cases again and compares.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from loopback_hub import Fault, LoopbackHub, altered, stalled, status, truncated

from benchmarks.results import RESULTS, provenance, write_json
from learned_optim.rules import L2L
from learned_optim.weights import save_folder

ROOT = Path(__file__).resolve().parent.parent
REPO = "user/rule"
TIMEOUT = 2  # seconds that the client waits for an answer in these cases; its own default is 10
LOAD = f"learned_optim.load_rule('{REPO}@main')"
ASK = f"{LOAD}; print('loaded')"
SETUP = "import torch, learned_optim\nfrom learned_optim import LearnedOptimizer\n"
MODEL = "model = torch.nn.Linear(2, 1)\n"


@dataclass(frozen=True)
class Case:
    """A fault.

    Attributes:
        what: in words.
        script: what the user runs; the folder holds a rule in `rule/`.
        prepare: spoils the rule's folder before.
        faults: of the Hub.
        warm: whether the rule was loaded before, when all was well.
        environment: further variables.
        processes: how many at once.
    """

    what: str
    script: str = ASK
    prepare: Callable[[Path], object] = lambda folder: None
    faults: Sequence[Fault] = ()
    warm: bool = False
    environment: tuple[tuple[str, str], ...] = ()
    processes: int = 1


def edit(**changes: object) -> Callable[[Path], None]:
    """Change keys of the rule's config.json."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def replace(file: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(data)


def remove(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).unlink()


FULL = (
    "import resource, signal\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))\n"
)
STEP = "model(torch.ones(1, 2)).sum().backward()\noptimizer.step()\n"
OPTIMIZER = MODEL + "optimizer = LearnedOptimizer(model.parameters())\n"
LOCAL = "LearnedOptimizer(torch.nn.Linear(2, 1).parameters(), rule='./rule')"


def cases(never: threading.Event) -> dict[str, list[Case]]:
    """All cases by group; `never` is set when the servers that hang may let go."""
    offline = (("HF_HUB_OFFLINE", "1"),)
    nowhere = (("HF_ENDPOINT", "http://127.0.0.1:9"),)
    return {
        "The Hub": [
            Case("no such repository (404)", "learned_optim.load_rule('user/nosuch@main')"),
            Case("no such revision (404)", f"learned_optim.load_rule('{REPO}@v9')"),
            Case("not allowed (401)", faults=[status(401, "HEAD")]),
            Case("gated (403)", faults=[status(403, "HEAD", error="GatedRepo")]),
            Case("the server fails once (500)", faults=[status(500, "HEAD", times=1)]),
            Case("the server is down (503)", faults=[status(503, "")]),
            Case("the server is down, warm cache", faults=[status(503, "")], warm=True),
            Case("a body cut off once", faults=[truncated("GET /storage", 50, times=1)]),
            Case("a body always cut off", faults=[truncated("GET /storage", 0)]),
            Case("another body of the same size, once", faults=[altered("GET /storage", 1)]),
            Case("another body of the same size, always", faults=[altered("GET /storage")]),
            Case("the server never answers", faults=[stalled("HEAD", never)]),
            Case("no network", environment=nowhere),
            Case("no network, warm cache", environment=nowhere, warm=True),
            Case("HF_HUB_OFFLINE=1", environment=offline),
            Case("HF_HUB_OFFLINE=1, warm cache", environment=offline, warm=True),
            Case("the disk is full", FULL + ASK),
            Case("two processes download at once", processes=2),
            Case(
                "publishing without a token",
                "from learned_optim.publishing import publish; publish('rule', 'user/new')",
            ),
        ],
        "Files": [
            Case("a bundled name mistyped", "learned_optim.load_rule('defualt')"),
            Case("a path mistyped", "learned_optim.load_rule('./ruel')"),
            Case("a Hub id without its revision", f"learned_optim.load_rule('{REPO}')"),
            Case("no weights", LOCAL, remove("model.safetensors")),
            Case("weights of another save", LOCAL, edit(weights_sha256="0" * 64)),
            Case("weights cut off", LOCAL, replace("model.safetensors", b"\x10")),
            Case("a newer format", LOCAL, edit(format_version=2)),
            Case("an unknown rule", LOCAL, edit(rule="l3l")),
            Case("a config that is no JSON", LOCAL, replace("config.json", b"{")),
            Case("a file too large", LOCAL, replace("config.json", bytes(65 * 1024))),
        ],
        "Arguments and training": [
            Case("lr out of range", MODEL + "LearnedOptimizer(model.parameters(), lr=-1)"),
            Case(
                "a kernel demanded that is not there",
                MODEL + "LearnedOptimizer(model.double().parameters(), fused=True)",
            ),
            Case(
                "a sparse gradient",
                "model = torch.nn.Embedding(3, 2, sparse=True)\n"
                "optimizer = LearnedOptimizer(model.parameters())\n"
                "model(torch.tensor([1])).sum().backward()\noptimizer.step()",
            ),
            Case(
                "a gradient that is NaN",
                OPTIMIZER + "(model(torch.ones(1, 2)).sum() * float('nan')).backward()\n"
                "optimizer.step()\nprint('goes on')",
            ),
            Case(
                "a checkpoint of another rule",
                OPTIMIZER + STEP + "other = LearnedOptimizer(model.parameters(), 'l2l-mnist')\n"
                "other.load_state_dict(optimizer.state_dict())",
            ),
            Case("OneCycleLR as it is", OPTIMIZER + ONE_CYCLE),
        ],
    }


ONE_CYCLE = "torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=9)"


def make_rule(folder: Path) -> None:
    """A small rule as it is published."""
    rule = L2L(layers=1, hidden=2)
    save_folder(folder, rule, rule.init_weights(torch.Generator().manual_seed(0)), name="small")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A rule\n")


def provoke(case: Case) -> dict[str, object]:
    """Run a case; what was printed last, what became of it, and how long it took."""
    with LoopbackHub() as hub, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_rule(folder / "rule")
        files = {path.name: path.read_bytes() for path in (folder / "rule").iterdir()}
        hub.put(REPO, files)
        variables = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": str(TIMEOUT),
            "HF_HUB_DOWNLOAD_TIMEOUT": str(TIMEOUT),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
        environment = kept | variables
        if case.warm:
            _run([ASK], folder, environment)
        case.prepare(folder / "rule")
        hub.faults = list(case.faults)
        environment |= dict(case.environment)
        printed, seconds = _run([case.script] * case.processes, folder, environment)
        shown = {hub.url: "https://hub", str(folder.resolve()): "/home/you", str(ROOT): ""}
        for secret, public in shown.items():
            printed = [text.replace(secret, public) for text in printed]
    return {"fault": case.what, **_summary(printed), "seconds": round(seconds, 1)}


def _run(scripts: list[str], folder: Path, environment: dict[str, str]) -> tuple[list[str], float]:
    """Run each in a process of its own, at once; what they printed, and the time after imports."""
    command = [sys.executable, "-c", SETUP + "import time; start = time.time()\n"]
    measure = "\nimport sys; print(f'\\nSECONDS {time.time() - start}', file=sys.stderr)"
    running = []
    for script in scripts:
        body = f"try:\n{textwrap.indent(script, '    ')}\nfinally:\n"
        whole = command[-1] + body + textwrap.indent(measure.strip(), "    ")
        running.append(
            subprocess.Popen(
                [*command[:-1], whole],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=300)[0] for process in running]
    times = [float(match) for text in outputs for match in re.findall(r"SECONDS (\S+)", text)]
    return [re.sub(r"\nSECONDS .*\n", "\n", text) for text in outputs], max(times, default=0.0)


def _summary(printed: list[str]) -> dict[str, object]:
    """The error or the warning that a user reads, without the traceback above it."""
    found = set()
    for text in printed:
        error = re.findall(r"^(?:\w+\.)*(\w+(?:Error|Unavailable)): (.*)$", text, re.MULTILINE)
        warned = re.findall(r"^.*?(\w*Warning): (.*)$", text, re.MULTILINE)
        if "Traceback" in text:
            found.add(("error", *error[-1]))
        elif warned:
            found.add(("warning, then goes on", *warned[-1]))
        else:
            found.add(("goes on", "", ""))
    (outcome, kind, message), *others = sorted(found)
    assert not others, printed
    return {"outcome": outcome, "type": kind, "message": message}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "faults.json")
    output = parser.parse_args().output
    never, groups = threading.Event(), {}
    started = time.time()
    for group, members in cases(never).items():
        groups[group] = []
        for case in members:
            row = provoke(case)
            groups[group].append(row)
            sys.stdout.write(f"{row['seconds']:6} s  {row['fault']}: {row['outcome']}\n")
            sys.stdout.flush()
    never.set()
    sys.stdout.write(f"{time.time() - started:.0f} s in all\n")
    command = {"command": "python tests/hub_faults.py", "timeout": TIMEOUT}
    write_json(output, provenance() | command | {"faults": groups})


if __name__ == "__main__":
    main()
