"""Where results go, and what is written beside every number: versions, hardware, command."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
# What `--again` is for, in its help.
ANEW = "anew, as after a change of code, which goes unnoticed"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    model = re.search(r"model name\s*:\s*(.+)", text)
    return model.group(1).strip() if model else platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def provenance() -> dict[str, object]:
    """Command, versions and hardware of this process, and the CPU seconds it has used so far."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    program = f"python -m {spec.name}" if spec is not None else Path(sys.argv[0]).name
    return {
        "command": " ".join([program, *sys.argv[1:]]),
        "cpu_seconds": round(time.process_time(), 1),
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in ("torch", "numpy")},
        },
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
    }


def _finite(value: object) -> object:
    """The same with None for infinities and NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write atomically: None for what is not finite, and lists of numbers on one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(content), indent=1)
    # Lists of numbers only; a line break cannot be inside a JSON string.
    text = re.sub(r"\[\n([^\[\]{}\"]+)\n\s*\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    temporary = path.with_suffix(".part")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def tell_of_kept(path: Path) -> None:
    """Say so where a script goes on from a file, which knows its weights but not its code."""
    if path.is_file():
        print(f"Goes on from {path}; a change of code since then goes unnoticed: see --again")
