"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def number(value: float | None) -> str:
    """Three digits; None, in result files, is a loss that was not finite."""
    return "diverged" if value is None else f"{value:.3g}"


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table, the first column to the left, the others to the right."""
    header = list(header)
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def with_interval(value: float | None, interval: Sequence[float | None]) -> str:
    """`0.5 (0.4 to 0.6)`."""
    low, high = (number(bound) for bound in interval)
    return f"{number(value)} ({low} to {high})"
