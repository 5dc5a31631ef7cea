"""The table of what a step costs, from the file of `benchmarks.step_time`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.markdown import markdown, number
from benchmarks.step_contenders import AVX2, BLOCKS, HALF, HALF_AVX2, MUON, SHIPPED, WITH_STAGE

LARGE = ("1M", "5M", "transformer")
OWN = ("C++ default", "C++ default, matrix stage", SHIPPED, WITH_STAGE)
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
                "-" if bound is None else number(bound),
                number(cases["small"]["times_adam_foreach"]),
            ]
        )
    adam = [r for r in single if r["contender"] == "Adam foreach" and r["case"] in LARGE]
    rows.append(["Adam (foreach)", _span([r["ns_per_parameter"] for r in adam]), "", "1", "", "1"])
    header = ["A step, one CPU thread: rule (layers, units)", "ns a parameter", "arithmetic alone"]
    header += ["times Adam", "bound we set", "76 tensors of 64: times Adam"]
    return markdown(header, rows)


def _label(contender: str, size: tuple[int, ...]) -> str:
    if contender == MUON:
        return MUON
    if contender == BLOCKS:
        return f"`l2l`, torch alone {size}"
    name, *stage = contender.removeprefix("C++").strip().split(", ")
    name, *more = name.split(" as ")
    parts = [f"`{name or 'l2l'}`", *(f"as {text}" for text in more), *stage]
    return " ".join([", ".join(parts), str(size) if size else ""]).strip()


def _span(values: Sequence[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}"
