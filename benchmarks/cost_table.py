"""The table of what a step costs, from the file of `benchmarks.step_time`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import markdown, number
from benchmarks.step_contenders import (
    AVX2,
    BARE,
    BARE_ALONE,
    BLOCKS,
    HALF,
    HALF_AVX2,
    MUON,
    SHIPPED,
    SHIPPED_ALONE,
)

LARGE = ("1M", "5M", "transformer")
OWN = ("C++ default", "C++ default, matrix stage", BARE, SHIPPED, BARE_ALONE, SHIPPED_ALONE)
# Networks of matrices that are small, where eigenbases take the place of orthogonalised steps.
SMALL = {"mlp": "128 x 784, 10 x 128", "width 128": "12 of 128 x 128"}
SMALL |= {"width 64": "24 of 64 x 64", "small mlp": "2 of 64 x 64, 10 x 64"}
# Times Adam foreach that a step of the rule `l2l` was to stay below.
WIDE = {(2, 20): 30.0, (1, 8): 4.5, (1, 4): 2.0}
NARROW = {(2, 20): 50.0, (1, 8): 6.5, (1, 4): 3.2}
ALONE = {(2, 20): 100.0, (1, 8): 22.0, (1, 4): 14.0}
BOUNDS = {"C++": WIDE, HALF: WIDE, AVX2: NARROW, HALF_AVX2: NARROW, BLOCKS: ALONE}
CONTENDERS = (*BOUNDS, *OWN, MUON)


def step_time(content: Mapping[str, Any]) -> str:
    """One thread: kernels and torch alone beside Adam, the bounds set for them, and limits."""
    single = [row for row in content["rows"] if row["threads"] == 1]
    found: dict[tuple[str, tuple[int, ...]], dict[str, Mapping[str, Any]]] = {}
    for row in single:
        if row["contender"] in CONTENDERS:
            size = tuple(row["size"] or ())
            found.setdefault((row["contender"], size), {})[row["case"]] = row
    rows = []
    for (contender, size), cases in found.items():
        # The limit is that of the cells in float32: of no matrix stage.
        bare = size and contender in ("C++", "C++ default")
        bound = BOUNDS[contender][size[0], size[1]] if contender in BOUNDS else None
        rows.append(
            [
                _label(contender, size),
                _span([cases[case]["ns_per_parameter"] for case in LARGE]),
                number(content["limits"][str(size)]["arithmetic_ns"]) if bare else "-",
                _span([cases[case]["times_adam_foreach"] for case in LARGE]),
                _span([cases[case]["times_adamw_fused"] for case in LARGE]),
                "-" if bound is None else number(bound),
                number(cases["small"]["times_adam_foreach"]),
            ]
        )
    adam = [r for r in single if r["contender"] == "Adam foreach" and r["case"] in LARGE]
    fused = _span([r["times_adamw_fused"] for r in adam])
    each = _span([r["ns_per_parameter"] for r in adam])
    rows.append(["Adam (foreach)", each, "", "1", fused, "", "1"])
    header = ["A step, one CPU thread: rule (layers, units)", "ns a parameter", "arithmetic alone"]
    header += ["times Adam (foreach)", "times AdamW (fused)", "bound we set"]
    header += ["76 tensors of 64: times Adam (foreach)"]
    return f"{markdown(header, rows)}\n\n{_small(single)}"


def _small(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rule as it ships and Muon, in times Adam, on networks of small matrices."""
    times = {(row["case"], row["contender"]): row["times_adam_foreach"] for row in rows}
    found = []
    for case, matrices in SMALL.items():
        ours, muon, bare = (times[case, name] for name in (SHIPPED, MUON, BARE))
        found.append([matrices, *map(number, (ours, bare, muon, ours / muon))])
    header = ["A step, one CPU thread, times Adam (foreach): matrices, and their vectors"]
    header += ["`default`, as shipped", "no matrix stage", "Muon", "as shipped over Muon"]
    return markdown(header, found)


def _label(contender: str, size: tuple[int, ...]) -> str:
    if contender == MUON:
        return MUON
    alone = ["torch alone"] if contender.startswith(BLOCKS) else []
    name, *stage = contender.removeprefix("C++").removeprefix(BLOCKS).strip().split(", ")
    name, *more = name.split(" as ")
    parts = [f"`{name or 'l2l'}`", *alone, *(f"as {text}" for text in more), *stage]
    return " ".join([", ".join(parts), str(size) if size else ""]).strip()


def _span(values: Sequence[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}"
