"""What a step costs on a GPU, against torch's fused Adam.

    python -m benchmarks.step_time_cuda            writes results/step_time_cuda.json
    python -m benchmarks.step_time_cuda --quick    one million parameters alone, written nowhere

Question: how many steps of fused Adam does one step of a learned rule cost on a GPU?
Method: first the Triton backend against the eager reference on the device; a rule that is wrong is
not timed. Then each contender's step is captured in a CUDA graph, so that the host does not count,
and replayed between two events; contenders take turns, and the median of the turns counts. The
step as Python calls it, host included, is timed too. Without a CUDA device it says so and measures
nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.results import RESULTS, provenance, write_json
from benchmarks.step_contenders import CASES, drawn, make_params, tensor_bytes
from learned_optim import LearnedOptimizer
from learned_optim.rules import L2L, Default, UpdateRule
from learned_optim.weights import in_memory

BASE = "Adam fused"
TURNS, REPLAYS = 15, 20
# Largest difference from the reference after five steps, relative to the largest parameter. The
# matrix stage is in bfloat16 on CUDA, and starts from directions that differ in the last place.
TOLERANCE = {"l2l": 1e-4, "default": 2e-2}

Step = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """One way to take a step.

    Attributes:
        name: in the table.
        make: parameters with gradients -> (a function that takes a step, bytes of its state).
        rule: the learned rule; None for torch's own.
        check: whether it is to be compared with the reference before it is timed.
    """

    name: str
    make: Callable[[list[nn.Parameter]], tuple[Step, int]]
    rule: UpdateRule | None = None
    check: bool = False


def hand_written(name: str, fused: bool) -> Contender:
    """Adam as torch has it."""

    def make(params: list[nn.Parameter]) -> tuple[Step, int]:
        optimizer = torch.optim.Adam(params, capturable=True, fused=fused, foreach=not fused)
        optimizer.step()
        return optimizer.step, tensor_bytes(dict(optimizer.state))

    return Contender(name, make)


def learned(rule: UpdateRule, fused: bool) -> Contender:
    """The optimizer on one of the backends."""
    loaded = in_memory(rule, drawn(rule), name="timed")

    def make(params: list[nn.Parameter]) -> tuple[Step, int]:
        optimizer = LearnedOptimizer(params, loaded, fused=fused)
        optimizer.step()
        return optimizer.step, tensor_bytes(dict(optimizer.state))

    return Contender(f"{label(rule)}, {'Triton' if fused else 'eager'}", make, rule, fused)


def half_state(rule: L2L) -> Contender:
    """Survey and update alone, with the state in float16: no bundled rule stores it so yet."""

    def make(params: list[nn.Parameter]) -> tuple[Step, int]:
        from learned_optim.backends.triton import launch, packing
        from learned_optim.backends.triton.constants import L2LSizes

        weights = {key: value.to(params[0].device) for key, value in drawn(rule).items()}
        columns, matrices = packing.pack(rule, weights)
        tensors = [p.detach() for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        rows = rule.state_spec["cell"].rows
        cells = [torch.zeros(rows, *p.shape, dtype=torch.float16, device=p.device) for p in params]
        sizes = L2LSizes(rule.layers, rule.hidden, rule.p, rule.scale)

        def step() -> None:
            finite = launch.survey(grads, grads, tensors, [], False)[:, 0] == 0
            group = launch.Group(finite, 1.0, None, 0.0, False)
            launch.l2l_(grads, tensors, cells, columns, matrices, group, sizes)

        step()
        return step, sum(map(tensor_bytes, cells))

    return Contender(f"{label(rule)}, Triton kernels alone, float16 state", make, rule)


def label(rule: UpdateRule) -> str:
    """A rule's name and sizes."""
    if isinstance(rule, L2L):
        return f"l2l ({rule.layers}, {rule.hidden})"
    return f"{rule.name} {'with' if getattr(rule, 'matrix', False) else 'without'} matrices"


def contenders() -> list[Contender]:
    """Everybody, torch's own first."""
    small = [L2L(layers=1, hidden=hidden) for hidden in (8, 4)]
    rules = [L2L(), *small, Default(matrix=False), Default()]
    fast = [learned(rule, fused=True) for rule in rules]
    slow = [learned(rule, fused=False) for rule in (L2L(), small[0], Default())]
    own = [hand_written(BASE, fused=True), hand_written("Adam foreach", fused=False)]
    return [*own, *fast, *map(half_state, small), *slow]


def on_device(case: str) -> list[nn.Parameter]:
    """The parameters of a case with their gradients, on the GPU."""
    found = []
    for param in make_params(case):
        moved = nn.Parameter(param.detach().cuda())
        moved.grad = None if param.grad is None else param.grad.cuda()
        found.append(moved)
    return found


def wrong_by(rule: UpdateRule) -> float:
    """Largest difference between the backends after five steps, relative to the parameters."""
    loaded, results = in_memory(rule, drawn(rule), name="checked"), []
    for fused in (True, False):
        params = on_device("mlp")
        optimizer = LearnedOptimizer(params, loaded, fused=fused)
        for _ in range(5):
            optimizer.step()
        results.append(torch.cat([param.detach().flatten() for param in params]))
    apart = (results[0] - results[1]).abs().max() / results[1].abs().max()
    return float(apart)


def captured(step: Step) -> Step | None:
    """The step as a CUDA graph's replay; None where it cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        print(f"not captured: {error}", file=sys.stderr)
        return None
    return graph.replay


def microseconds(step: Step) -> float:
    """A step's time on the device, from one event to the other; the host runs ahead."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(REPLAYS):
        step()
    stop.record()
    stop.synchronize()
    return 1e3 * start.elapsed_time(stop) / REPLAYS


def time_case(case: str, entrants: list[Contender]) -> list[dict[str, Any]]:
    """All contenders in turn, as graphs and as calls."""
    numel = sum(param.numel() for param in make_params(case))
    rows, ready = [], []
    for contender in entrants:
        step, state = contender.make(on_device(case))
        ready.append({"graph": captured(step), "call": step})
        rows.append(
            {
                "contender": contender.name,
                "case": case,
                "state_bytes_per_parameter": state / numel,
            }
        )
    for kind in ("graph", "call"):
        times: list[list[float]] = [[] for _ in ready]
        for _ in range(TURNS):
            for steps, found in zip(ready, times, strict=True):
                step = steps[kind]
                if step is not None:
                    found.append(microseconds(step))
        for row, found in zip(rows, times, strict=True):
            row[f"{kind}_us"] = statistics.median(found[1:]) if found else None
        base = rows[0][f"{kind}_us"]
        for row in rows:
            mine = row[f"{kind}_us"]
            row[f"{kind}_times_fused_adam"] = mine / base if mine and base else None
    for row in rows:
        row["graph_ps_per_parameter"] = row["graph_us"] and 1e6 * row["graph_us"] / numel
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Fixed-width text."""
    lines = [f"{'':48}{'graph us':>10}{'x Adam':>8}{'call us':>10}{'x Adam':>8}{'state B':>8}"]
    case = None
    for row in rows:
        if row["case"] != case:
            case = row["case"]
            lines.append(case)
        numbers = [row["graph_us"], row["graph_times_fused_adam"], row["call_us"]]
        numbers += [row["call_times_fused_adam"], row["state_bytes_per_parameter"]]
        texts = ["-" if x is None else f"{x:.1f}" for x in numbers]
        columns = "".join(f"{text:>{w}}" for text, w in zip(texts, (10, 8, 10, 8, 8), strict=True))
        lines.append(f"  {row['contender']:46}{columns}")
    return "\n".join(lines)


def run(quick: bool) -> dict[str, Any]:
    """Check, then time.

    Raises:
        SystemExit: a rule is wrong on the device.
    """
    everybody = contenders()
    checked: dict[str, float] = {}
    for contender in everybody:
        if contender.check and contender.rule is not None:
            checked[contender.name] = wrong_by(contender.rule)
            if not checked[contender.name] < TOLERANCE[contender.rule.name]:
                raise SystemExit(f"{contender.name} is wrong by {checked[contender.name]:.1e}")
    rows = []
    for case in ("1M",) if quick else CASES:
        rows += time_case(case, everybody)
        torch.cuda.empty_cache()
    device = torch.cuda.get_device_properties(0)
    facts = {"device": device.name, "multiprocessors": device.multi_processor_count}
    return {**provenance(), **facts, "wrong_by": checked, "rows": rows}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Time of an optimizer's step on a GPU.")
    parser.add_argument("--quick", action="store_true", help="less, and written nowhere")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured", file=sys.stderr)
        sys.exit(1)
    content = run(options.quick)
    print(table(content["rows"]))
    print("wrong by:", ", ".join(f"{name} {x:.0e}" for name, x in content["wrong_by"].items()))
    if not options.quick:
        write_json(RESULTS / "step_time_cuda.json", content)


if __name__ == "__main__":
    main()
