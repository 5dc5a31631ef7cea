"""What is kept of one setting on one problem, and how the best rate of a grid is found.

Where the best rate is at an end of its grid, the true best may lie beyond: then further rates are
tried there, one by one, until one of them is worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.general.grids import Method
from benchmarks.general.training import FLOOR, Outcome

Entry = dict[str, Any]

FURTHEST = 6  # rates beyond a grid: three powers of ten


def entry(outcome: Outcome, copy: int) -> Entry:
    """One setting's numbers, a list over runs each."""
    return {
        "final": digits(outcome.final[:, copy]),
        "test": None if outcome.test is None else digits(outcome.test[:, copy]),
        "rise": digits(outcome.rise[:, copy]),
        "curve": [digits(row, 4) for row in outcome.curve[:, copy]],
    }


def tuned_entry(outcome: Outcome, copies: Sequence[int], method: Method, name: str) -> Entry:
    """Of the best rate of a grid, with every rate's final losses.

    Args:
        outcome: of all copies.
        copies: those of this method's rates, one after the other.
        method: with its rates.
        name: what `store.identity` says of it.
    """
    finals = [digits(outcome.final[:, copy]) for copy in copies]
    best = best_of(finals, digits(outcome.start))
    return {
        "id": name,
        "rate": method.rates[best],
        "at_edge": best in (0, len(copies) - 1),
        "finals": finals,
        **entry(outcome, copies[best]),
    }


def best_of(finals: Sequence[Sequence[float | None]], start: Sequence[float]) -> int:
    """The rate whose final loss has the least geometric mean over the very runs that are compared.

    Chosen with hindsight, in favour of the baselines; a rate with a loss that is not finite is out
    where there is another.
    """
    losses = torch.tensor(
        [[math.inf if loss is None else loss for loss in row] for row in finals],
        dtype=torch.float64,
    )
    floor = FLOOR * torch.tensor(start, dtype=torch.float64)
    return int((losses + floor).log().mean(-1).argmin())


def widened(
    found: Entry, method: Method, start: Sequence[float], run: Callable[[Method], Outcome]
) -> Entry:
    """The entry of the best rate there is, also beyond the grid; `rates` are all that were tried.

    Args:
        found: of the grid.
        method: with the rates of the grid.
        start: the runs' first losses.
        run: trains with a method's rates, on the runs that the grid had.
    """
    rates, finals = [*method.rates], [*found["finals"]]
    for _ in range(FURTHEST):
        best = best_of(finals, start)
        if 0 < best < len(rates) - 1:
            break
        place = 0 if best == 0 else len(rates)
        rates.insert(place, beyond(rates, above=best > 0))
        outcome = run(replace(method, rates=(rates[place],)))
        finals.insert(place, digits(outcome.final[:, 0]))
        if best_of(finals, start) == place:
            found = found | entry(outcome, 0)
    best = best_of(finals, start)
    at_edge = best in (0, len(rates) - 1)
    return found | {"rate": rates[best], "at_edge": at_edge, "rates": rates, "finals": finals}


def beyond(rates: Sequence[float], *, above: bool) -> float:
    """The next of 1, 3, 10, 30, ... above or below all of `rates`."""
    power = round(2 * math.log10(rates[-1] if above else rates[0])) + (1 if above else -1)
    return float(f"{10 ** (power / 2):.0e}")


def digits(values: Tensor, count: int = 6) -> list[float]:
    """Rounded, so that files stay small."""
    return [float(f"{value:.{count}g}") for value in values.tolist()]
