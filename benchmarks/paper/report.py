"""Tables in the terminal, and the arguments that both scripts share."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.baselines import BASELINES
from benchmarks.learned import find_weights, load_rules
from benchmarks.results import ANEW, RESULTS, tell_of_kept
from learned_optim.weights import LoadedRule, WeightsError, WeightsUnavailable

METRICS = {
    "final": "loss at the last step, on the next minibatch (the paper's protocol)",
    "sum": "sum of the losses of all steps (the meta-loss)",
    "train_set": "loss at the end, on the whole training set",
    "test_set": "loss at the end, on the whole test set",
}

_RATIOS = {"ratio": "ratio to best (95 %)", "ratio_to_papers": "without Momentum, AdaGrad"}


def label(entry: str) -> str:
    """An entry's name for people: `learned-1` -> "L2L (1)"."""
    if entry in BASELINES:
        return BASELINES[entry].label
    return "L2L" + (f" ({entry.partition('-')[2]})" if "-" in entry else "")


def small_parser(description: str) -> argparse.ArgumentParser:
    """Where the output goes, and whether anything is measured."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "--output",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help="where JSON and figure go (default: benchmarks/results)",
    )
    result.add_argument(
        "--redraw", action="store_true", help="only the table and the figure, from the JSON"
    )
    return result


def script(
    description: str,
    name: str,
    measure: Callable[[Path], None],
    draw: Callable[[dict[str, Any], Path], None],
    show: Callable[[dict[str, Any]], None] = lambda _: None,
    *,
    resumes: bool = False,
) -> None:
    """What a script with one result does: measure, unless it only draws; print; draw.

    Args:
        description: for `--help`.
        name: of the JSON and of the figure beside it.
        measure: writes the JSON. Where it finds one, it may go on with that.
        draw: the figure at a path, from the JSON's content.
        show: prints the table.
        resumes: whether `measure` goes on, so that `--again` can ask for a new beginning, as it
            must after a change of code.
    """
    options = small_parser(description)
    if resumes:
        options.add_argument("--again", action="store_true", help=f"run everything {ANEW}")
    arguments = options.parse_args()
    path = arguments.output / f"{name}.json"
    if resumes and arguments.again:
        path.unlink(missing_ok=True)
    if not arguments.redraw:
        if resumes:
            tell_of_kept(path)
        measure(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    show(content)
    draw(content, path.with_suffix(".png"))
    print(f"\nWritten: {path} and {path.with_suffix('.png')}")


def parser(description: str, bundled: str) -> argparse.ArgumentParser:
    """The common options."""
    result = small_parser(description)
    result.add_argument(
        "--weights",
        type=Path,
        nargs="+",
        metavar="DIR",
        help=f"folders of weights, the main one first (default: pretrained/{bundled} and the "
        "other meta-seeds in its folder seeds)",
    )
    result.add_argument("--retune", action="store_true", help="tune the baselines again")
    result.add_argument("--runs", type=int, help="fewer test runs, for a quick look")
    return result


def rules(folders: list[Path] | None, bundled: str) -> dict[str, LoadedRule]:
    """The learned rules to compare; exits with a message if a named folder cannot be loaded."""
    found = folders if folders is not None else find_weights(bundled)
    if not found:
        print(
            f"There are no weights in pretrained/{bundled}: only the baselines are run. Meta-train "
            f"them with `learned-optim meta-train pretrained/{bundled}/recipe.toml`, or name a "
            "folder with --weights.",
            file=sys.stderr,
        )
    try:
        return load_rules(found)
    except (WeightsError, WeightsUnavailable) as error:
        sys.exit(f"error: {error}")


def number(value: float | None, digits: str = ".4g") -> str:
    """None stands for what is not finite: see `benchmarks.results.write_json`."""
    return "diverged" if value is None or not math.isfinite(value) else format(value, digits)


def _interval(pair: Sequence[float | None], digits: str = ".4g") -> str:
    return " to ".join(number(value, digits) for value in pair)


def _ratio(ratio: dict[str, Any]) -> str:
    return f"{number(ratio['mean'], '.3g')} ({_interval(ratio['interval_95'], '.3g')})"


def table(result: dict[str, Any], metric: str) -> str:
    """One metric of one case as aligned text, the best baseline marked."""
    ranked = result["metrics"][metric]
    rows = [("", "rate", "mean", "95 % interval", "median", "worst", *_RATIOS.values(), "paper")]
    for entry, values in sorted(ranked["entries"].items(), key=_by_mean):
        facts = result["entries"][entry]
        paper = facts["paper"] if metric == "final" else None
        rows.append(
            (
                label(entry) + (" *" if entry == ranked["best_baseline"] else ""),
                "" if facts["rate"] is None else number(facts["rate"]),
                number(values["mean"]),
                _interval(values["interval_95"]),
                number(values["median"]),
                number(values["worst"]),
                *(_ratio(values[key]) for key in _RATIOS),
                "" if paper is None else number(paper),
            )
        )
    return _align(rows)


def _by_mean(item: tuple[str, dict[str, Any]]) -> float:
    mean = item[1]["mean"]
    return math.inf if mean is None else mean


def _align(rows: Iterable[tuple[str, ...]]) -> str:
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def show(result: dict[str, Any]) -> None:
    """Print all metrics of one case."""
    for metric in result["metrics"]:
        print(f"\n{result['title']}, {result['steps']} steps: {METRICS[metric]}")
        print(f"{result['test_runs']} test runs; * is the best baseline")
        print(table(result, metric))
