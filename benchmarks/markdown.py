"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable


def number(value: float | None) -> str:
    """Three digits; None, in result files, is a loss that was not finite."""
    return "diverged" if value is None else f"{value:.3g}"


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table, the first column to the left, the others to the right."""
    header = list(header)
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
