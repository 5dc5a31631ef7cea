"""What Triton's compiler makes of the kernels for a GPU that need not be there.

In a process of its own: in this one the kernels may have become calls of the interpreter.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "triton_compile.json"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "error", "-m", "benchmarks.triton_compile", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or sys.platform != "linux",
    reason="triton is not installed: pip install triton (Linux)",
)
@pytest.mark.slow
def test_no_kernel_spills_or_computes_in_float64(tmp_path):
    names = [
        "l2l (2, 20), float32 state",
        "l2l (1, 8), float16 state",
        "default 4",
        "survey",
        "add",
    ]
    found = run(tmp_path, *(part for name in names for part in ("--only", name)))
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert "not measured on a GPU" in lines[0]
    assert len(lines) == 10
    for line in lines[1:]:
        registers, spills, float64 = re.findall(r"(?<= )\d+", line[32:])[:3]
        assert 16 <= int(registers) <= 232, line
        assert (spills, float64) == ("0", "0"), line


def test_the_stored_result_says_that_nothing_was_measured():
    stored = json.loads(RESULT.read_text(encoding="utf-8"))
    assert stored["measured_on_a_gpu"] is False
    assert all(row["spills"] == row["float64"] == row["local_bytes"] == 0 for row in stored["rows"])
