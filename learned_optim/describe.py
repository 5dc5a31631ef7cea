"""A rule in a few lines of text: what it is, what it costs, what was measured, its licence."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from learned_optim import bases
from learned_optim.cost import StepCost, step_cost
from learned_optim.files import read_whole
from learned_optim.hub import as_path, load_rule
from learned_optim.publishing import licence
from learned_optim.rules import UpdateRule
from learned_optim.weights import WeightsError, bundled_folder, bundled_names

_PLAIN = (str, int, float, bool)
_DIGITS = 4
_MANY = 10  # from here on no decimals
# Of metrics: the size of the file, how deep values may lie, characters of a key or a value.
_MAX_METRICS_BYTES = 1024 * 1024
_DEPTH = 4
_LONGEST = 200


def describe(source: str | os.PathLike[str]) -> str:
    """Several lines, each `what: value`, on a bundled rule, a folder or a rule on the Hub.

    It takes a second, in which the step is timed.

    Raises:
        WeightsUnavailable: as `load_rule`.
        WeightsError: as `load_rule`.
    """
    loaded = load_rule(source)
    rule = loaded.rule
    count = sum(value.numel() for value in loaded.weights.values())
    memory = sum(value.numel() * value.element_size() for value in loaded.weights.values())
    lean = loaded.lean().rule
    per_coordinate, per_tensor = state_bytes(lean)
    facts = {
        "name": loaded.name,
        "rule": rule.name,
        "config": ", ".join(f"{key}={value}" for key, value in rule.config().items()),
        "sha256": loaded.sha256,
        "weights": f"{count} numbers, {memory} bytes, shared by all parameters",
        "state": f"{per_coordinate} bytes per parameter, {per_tensor} per tensor (Adam: 8)"
        + _bases(lean),
        "step": _step(step_cost(loaded)),
    }
    if lean != rule:
        idle = [key for key, value in rule.config().items() if lean.config()[key] != value]
        facts["idle"] = f"{', '.join(idle)}: these networks' heads are zero, so steps do without"
    folder = _folder(source)
    if folder is not None:
        facts["licence"] = _plain(licence(folder) or "not stated")
        facts |= {f"metrics {key}": text for key, text in _metrics(folder)}
    return "\n".join(f"{key}: {value}" for key, value in facts.items())


def state_bytes(rule: UpdateRule) -> tuple[int, int]:
    """Bytes of state for each float32 coordinate, and for each tensor on top of that."""
    sizes = {"coordinate": 0, "tensor": 0}
    for spec in rule.state_spec.values():
        sizes[spec.per] += spec.rows * torch.empty((), dtype=spec.dtype).element_size()
    return sizes["coordinate"], sizes["tensor"]


def _bases(rule: UpdateRule) -> str:
    """What bases add to that, where there are any."""
    square = (bases.LONGEST, bases.LONGEST)
    if not rule.has_basis(square):
        return ""
    # Two float32 squares, over a matrix as even and as uneven as has them.
    least, most = (round(4 * (ratio + 1 / ratio)) for ratio in (1, bases.MOST_UNEVEN))
    size, largest = f"{square[0]} x {square[1]}", 8 * bases.LONGEST**2 // 1000
    return (
        f"; {least} to {most} more per parameter of matrices of up to {size}, and for those of few "
        f"inputs more, at most {largest} kB a matrix"
    )


def _step(cost: StepCost) -> str:
    """Time first, then what it holds for."""
    time, ratio = _short(cost.nanoseconds), _short(cost.times_adam)
    return (
        f"{time} ns per parameter, {ratio} times Adam's (measured now: {cost.parameters:,} "
        f"parameters, one thread, backend {cost.backend!r})"
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= _MANY else f"{value:.2g}"


def _folder(source: str | os.PathLike[str]) -> Path | None:
    """Where the files beside the weights lie; None for a rule on the Hub."""
    if isinstance(source, str) and source in bundled_names():
        return bundled_folder(source)
    folder = as_path(source)
    return folder if folder.is_dir() else None


def _metrics(folder: Path) -> Iterator[tuple[str, str]]:
    """The plain values of `metrics.json`; curves, lists and what lies deep are left out."""
    try:
        content = json.loads(
            read_whole(folder / "metrics.json", _MAX_METRICS_BYTES).decode("utf-8")
        )
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError, WeightsError) as error:
        yield "metrics.json", f"cannot be read: {_plain(str(error))}"
        return
    if isinstance(content, dict):
        yield from _flatten(content, "", _DEPTH)


def _flatten(values: Mapping[str, object], prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = prefix + _plain(key)
        if isinstance(value, Mapping):
            if depth > 1:
                yield from _flatten(value, f"{name}.", depth - 1)
        elif isinstance(value, float) and math.isfinite(value):
            yield name, f"{value:.{_DIGITS}g}"
        elif isinstance(value, _PLAIN):
            yield name, _plain(str(value))


def _plain(text: str) -> str:
    """Of text that anyone may have written what can be printed in a line."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1]
        for character in text[:_LONGEST]
    )
