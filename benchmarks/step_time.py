"""What a step costs: time and memory a parameter, against Adam's and against estimated limits.

    python -m benchmarks.step_time            five minutes of CPU time, 8 GB of memory
    python -m benchmarks.step_time --quick    1M parameters and the small tensors, one thread
    python -m benchmarks.step_time --redraw   the table and the picture from the JSON

Question: how many steps of Adam does one step of a learned rule cost, by backend?
Method: one process; all contenders of a case in turn, then again, so that a change of the
machine's mood meets all; the median of each. Steps are timed in pairs where matrices have bases, as
these turn at every second one. With one thread the CPU time of the (pinned) thread
is what counts, which other programs disturb less than wall time; with two it is wall time.
Writes results/step_time.json and results/step_time.png. Conclusions stand in the README.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.results import RESULTS, provenance, write_json
from benchmarks.step_contenders import (
    BLOCKS,
    CASES,
    Contender,
    contenders,
    instructions,
    make_params,
)
from benchmarks.step_time_figure import BASE, draw
from learned_optim.bases import PERIOD
from learned_optim.kernels import native

ROUNDS = {"1M": 9, "5M": 5, "transformer": 5}
OTHERS = 25  # rounds of the small cases
# Cases in which all but the hand-written optimizers and the rule as it ships would say nothing new.
BASES = ("width 128", "width 64", "small mlp")
BUSY = 0.1  # cores that others may keep busy while wall time is measured
PATIENCE = 40  # times that the machine is looked at before two threads are given up


def label(contender: Contender) -> str:
    """Name and size."""
    return contender.name + (f" {contender.size}" if contender.size else "")


def clock(threads: int) -> Callable[[], float]:
    """CPU time of the one thread, else wall time."""
    return time.thread_time if threads == 1 else time.perf_counter


def pin(threads: int) -> None:
    """Give this process as many cores as it uses, where the system can."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:threads] or [0])


def busy_cores(seconds: float = 1.5) -> float | None:
    """Cores that everybody but this process keeps busy now; None where Linux does not tell."""

    def used() -> tuple[float, float]:
        with open("/proc/stat", encoding="ascii") as stat:  # noqa: PTH123
            ticks = [int(word) for word in stat.readline().split()[1:9]]
        idle = ticks[3] + ticks[4]
        return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK") - time.process_time(), time.time()

    try:
        before, start = used()
        time.sleep(seconds)
        after, end = used()
    except OSError:
        return None
    return max(0.0, after - before) / (end - start)


def wait_for_quiet() -> float | None:
    """Wait a minute at most until others leave room; what they keep busy then, as `busy_cores`."""
    cores, busy = os.cpu_count() or 1, None
    for _ in range(PATIENCE):
        busy = busy_cores()
        if busy is None or busy <= cores - 2 + BUSY:
            break
    return busy


def resident(kind: str) -> int | None:
    """`VmRSS` or `VmHWM` (its peak) of this process in bytes; None where Linux does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123
            line = next(line for line in status if line.startswith(kind))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def temporaries(step: Callable[[], object]) -> int | None:
    """Peak of memory during a step above what is there before it, the least of three.

    Whatever else the process touches for the first time meanwhile is counted along.
    """
    peaks = [_peak(step) for _ in range(3)]
    known = [peak for peak in peaks if peak is not None]
    return min(known) if known else None


def _peak(step: Callable[[], object]) -> int | None:
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w", encoding="ascii") as peak:  # noqa: PTH123
            peak.write("5")
    except (AttributeError, OSError):
        return None
    before = resident("VmRSS")
    step()
    after = resident("VmHWM")
    return None if before is None or after is None else max(0, after - before)


def time_case(case: str, threads: int, entrants: list[Contender]) -> list[dict[str, Any]]:
    """All contenders in turn, round after round."""
    numel = sum(param.numel() for param in make_params(case))
    ready, peaks = [], []
    for contender in entrants:
        ready.append((contender, *contender.make(make_params(case))))
        # At once: in a heap that others have left full of holes a step touches more of it.
        with instructions(contender.isa):
            peaks.append(temporaries(ready[-1][1]) if threads == 1 else None)
    seconds: list[list[float]] = [[] for _ in ready]
    now, steps = clock(threads), PERIOD if case in BASES else 1
    for turn in range(ROUNDS.get(case, OTHERS) + 1):
        for (contender, step, _), found in zip(ready, seconds, strict=True):
            if not contender.large and turn > 3:
                continue
            with instructions(contender.isa):
                start = now()
                for _ in range(steps):
                    step()
                found.append((now() - start) / steps)
    rows = []
    for (contender, _, state), found, peak in zip(ready, seconds, peaks, strict=True):
        median = statistics.median(found[1:])  # the first turn warms up
        rows.append(
            {
                "contender": contender.name,
                "size": contender.size,
                "case": case,
                "threads": threads,
                "ns_per_parameter": 1e9 * median / numel,
                "fastest_ns_per_parameter": 1e9 * min(found) / numel,
                "state_bytes_per_parameter": state / numel,
                "temporary_bytes": peak,
            }
        )
    base = next(row for row in rows if row["contender"] == BASE)["ns_per_parameter"]
    fused = next(row for row in rows if row["contender"] == "AdamW fused")["ns_per_parameter"]
    for row in rows:
        row["times_adam_foreach"] = row["ns_per_parameter"] / base
        row["times_adamw_fused"] = row["ns_per_parameter"] / fused
    return rows


def best_of(count: int, action: Callable[[], object]) -> float:
    """Seconds of the fastest call."""
    found = []
    for _ in range(count):
        start = time.thread_time()
        action()
        found.append(time.thread_time() - start)
    return min(found)


def limits() -> dict[str, dict[str, float]]:
    """The least ns a parameter that this machine's arithmetic and memory allow, one thread.

    Arithmetic: the cells' multiply-adds, and 77 vector operations a unit for its activations, at
    the rate of a float32 matrix product. Memory: state, parameter and gradient at the rate of a
    copy.
    """
    a, b = torch.randn(768, 768), torch.randn(768, 768)
    rate = 768**3 / best_of(12, lambda: a @ b)
    source, target = torch.randn(20_000_000), torch.empty(20_000_000)
    bandwidth = 8 * source.numel() / best_of(6, lambda: target.copy_(source))
    found = {}
    for layers, hidden in ((2, 20), (1, 8), (1, 4)):
        products = 4 * hidden * (2 + hidden) + (layers - 1) * 8 * hidden * hidden
        moved = 2 * 8 * layers * hidden + 12
        found[f"({layers}, {hidden})"] = {
            "arithmetic_ns": 1e9 * (products + 77 * layers * hidden) / rate,
            "memory_ns": 1e9 * moved / bandwidth,
        }
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Fixed-width text."""
    lines = [f"{'':44}{'ns/param':>9}{'x Adam':>8}{'x fused':>8}{'state B':>8}{'temp MB':>8}"]
    group = None
    for row in rows:
        if (row["case"], row["threads"]) != group:
            group = (row["case"], row["threads"])
            lines.append(f"{row['case']}, {row['threads']} thread(s)")
        size = f" {tuple(row['size'])}" if row["size"] else ""
        peak = "" if row["temporary_bytes"] is None else f"{row['temporary_bytes'] / 1e6:.1f}"
        lines.append(
            f"  {row['contender'] + size:42}{row['ns_per_parameter']:9.2f}"
            f"{row['times_adam_foreach']:8.2f}{row['times_adamw_fused']:8.2f}"
            f"{row['state_bytes_per_parameter']:8.0f}{peak:>8}"
        )
    return "\n".join(lines)


def run(quick: bool) -> dict[str, Any]:
    """All cases."""
    everybody = contenders()
    if native.best_level() < native.LEVELS.index("avx512"):
        everybody = [contender for contender in everybody if contender.isa is None]
    quickly = [c for c in everybody if c.large and c.isa is None and not c.name.startswith(BLOCKS)]
    rows: list[dict[str, Any]] = []
    everywhere = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    load, cores, before = os.getloadavg()[0], os.cpu_count() or 1, busy_cores()
    pin(1)
    bounds = limits()
    for case in ("1M", "small") if quick else CASES:
        large = case in ("5M", "transformer")
        entrants = [c for c in everybody if c.large or not large]
        rows += time_case(case, 1, [c for c in entrants if not c.size or case not in BASES])
    if everywhere is not None:
        os.sched_setaffinity(0, everywhere)
    two_threads, busy = "measured", None if quick else wait_for_quiet()
    if quick:
        two_threads = "not measured: --quick"
    elif busy is not None and busy > cores - 2 + BUSY:
        # Wall time would say how busy the others were.
        two_threads = f"not measured: others keep {busy:.1f} of {cores} cores busy"
    else:
        pin(2)
        for case in ("1M", "transformer"):
            rows += time_case(case, 2, quickly)
    facts = {
        "instruction_set": native.LEVELS[native.best_level()],
        "load_average": load,
        "busy_cores_of_others": {"before": before, "before_two_threads": busy},
        "two_threads": two_threads,
    }
    return {**provenance(), **facts, "limits": bounds, "rows": rows}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Time and memory of an optimizer's step.")
    parser.add_argument("--quick", action="store_true", help="less, and written nowhere")
    parser.add_argument("--redraw", action="store_true", help="from what was measured before")
    options = parser.parse_args()
    path = RESULTS / "step_time.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if options.redraw else None
    content = kept or run(options.quick)
    print(table(content["rows"]))
    for size, bound in content["limits"].items():
        print(f"limits {size}:", ", ".join(f"{k} {v:.1f}" for k, v in bound.items()))
    print("two threads:", content["two_threads"])
    if options.quick:
        return
    if not options.redraw:
        write_json(path, content)
    draw(content, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
