"""The page of the paper's reproduction, `docs/paper.md`, from the committed results.

    python -m benchmarks.paper.page            write it
    python -m benchmarks.paper.page --check    exit with 1 if it is not up to date

What was reached stands beside what the paper shows, hits and misses alike. The words of the page
are its own; everything between the marks comes from `benchmarks/results/*.json` and
`pretrained/*/metrics.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.baselines import BASELINES
from benchmarks.paper.failures import title
from benchmarks.paper.starts import PAPER, RATES, distance, shape_of
from benchmarks.paper.sweep import ratio as size_ratio
from benchmarks.readme_tables import KINDS, markdown, number
from benchmarks.results import RESULTS

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "paper.md"
PRETRAINED = PAGE.parent.parent / "pretrained"
_MARK = re.compile(r"<!-- (\w+): begin -->.*?<!-- \1: end -->", re.DOTALL)
# Case -> the gate: largest loss at the end, largest ratio to the best tuned baseline. Where the
# paper's figures have a baseline of ours, the ratio is its own; 1 is "below every baseline".
GATES: dict[str, tuple[float | None, float | None]] = {
    "quadratic": (0.21, 0.60),
    "mnist_base": (0.255, 0.75),
    "mnist_base_200": (None, 0.80),
    "mnist_40_hidden": (None, 0.63),
    "mnist_2_layers": (None, 0.46),
    "mnist_relu": (None, None),
    "cifar_10": (None, 1.0),
    "cifar_5": (None, 1.0),
    "cifar_2": (None, 1.0),
    "cifar_10_128": (None, 1.0),
    "cifar_10_long": (None, 1.0),
    "new_content": (None, 1.0),
    "new_style": (None, 1.0),
    "large": (None, 1.0),
}
_FILES = ("paper_quadratic", "paper_mnist", "paper_cifar", "paper_neural_art")


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def verdict(name: str, loss: float | None, ratio: float | None) -> str:
    """`hit`, `miss`, or nothing where there is no gate."""
    most_loss, most_ratio = GATES[name]
    if most_loss is None and most_ratio is None:
        return "-"
    pairs = ((loss, most_loss), (ratio, most_ratio))
    wrong = any(most is not None and (found is None or found > most) for found, most in pairs)
    return "miss" if wrong else "hit"


def gates(folder: Path) -> str:
    """Every experiment with a gate: reached, asked, the paper's own, and the verdict."""
    header = ["Experiment", "loss", "best tuned baseline", "ratio", "asked", "paper", "verdict"]
    rows = []
    cases: dict[str, Any] = {}
    for file in _FILES:
        cases |= _read(folder, file).get("cases", {})
    for name, asked in GATES.items():
        entries = cases.get(name, {}).get("entries", {})
        found = [entry for entry in ("learned", *KINDS) if entry in entries]
        if not found:
            rows.append([name.replace("_", " "), *["-"] * 3, _asked(asked), "-", "not run"])
        rows += [_gate_row(name, cases[name], entry) for entry in found]
    return markdown(header, rows)


def _asked(gate: tuple[float | None, float | None]) -> str:
    loss, ratio = gate
    parts = [] if loss is None else [f"loss {number(loss)}"]
    parts += [] if ratio is None else [f"ratio {number(ratio)}"]
    return ", ".join(parts) or "-"


def _gate_row(name: str, case: dict[str, Any], entry: str) -> list[str]:
    final = case["metrics"]["final"]
    learned, best = final["entries"][entry], final["best_baseline"]
    shown = {key: facts["paper"] for key, facts in case["entries"].items() if facts["paper"]}
    baselines = [shown[key] for key in BASELINES if key in shown]
    paper = "-"
    if shown.get("learned") and baselines:
        paper = f"{number(shown['learned'])}, ratio {number(shown['learned'] / min(baselines))}"
    elif name == "quadratic":
        paper = "ratio 0.77"
    return [
        f"{case['title']}, {case['steps']} steps" + KINDS.get(entry, ""),
        number(learned["mean"]),
        f"{number(final['entries'][best]['mean'])} ({BASELINES[best].label})",
        number(learned["ratio"]["mean"]),
        _asked(GATES[name]),
        paper,
        verdict(name, learned["mean"], learned["ratio"]["mean"]),
    ]


def failures(folder: Path) -> str:
    """Median losses at the marks; runs above their start in brackets."""
    rows = []
    for case in _read(folder, "paper_failures").get("failures", {}).values():
        for entry, facts in case["entries"].items():
            marks = ", ".join(
                f"step {mark}: {number(at['median'])} ({at['above_start']})"
                for mark, at in facts["marks"].items()
            )
            rows.append([f"{case['title']}, {case['runs']} runs", title(entry), marks])
    return markdown(["Case", "", "median loss (runs that stand above the start)"], rows)


def sweep(folder: Path) -> str:
    """A row for each depth and width."""
    rows = []
    for size in _read(folder, "paper_sweep").get("sizes", {}).values():
        means = [number(size["entries"][key]["mean"]) for key in ("learned", "adam", "nag")]
        rows.append([f"{size['depth']} x {size['width']}", *means, f"{size_ratio(size):.2f}"])
    header = ["layers x units", "learned", "Adam", "NAG", "learned / better one"]
    return markdown(header, rows)


def starts(folder: Path) -> str:
    """A row for each network and start, and one for the paper's figures of each network."""
    rows = []
    networks = sorted(
        _read(folder, "paper_starts").get("starts", {}).values(),
        key=lambda network: (shape_of(network), network["std"]),
    )
    for network in networks:
        means = [number(network["entries"][key]["mean"]) for key in (*RATES, "learned")]
        layers, units = shape_of(network)
        name = f"{layers} x {units}, {network['std']:g}"
        rows.append([name, *means, f"{distance(network):.2f}"])
    for (layers, units), paper in PAPER.items():
        figures = [number(paper[key]) for key in (*RATES, "learned")]
        rows.append([f"{layers} x {units}, the paper", *figures, "-"])
    header = ["layers x units, std", "Adam", "RMSprop", "NAG", "SGD", "learned", "baselines off by"]
    return markdown(header, rows)


def smoothing(folder: Path) -> str:
    """A row for each length and width."""
    rows = [
        [
            str(cell["length"]),
            number(cell["width"]),
            number(statistics.median_low(cell["norms"])),
            number(max(cell["norms"])),
            f"{cell['cosine']:.2f}",
        ]
        for cell in _read(folder, "paper_smoothing").get("cells", [])
    ]
    header = ["steps", "width", "median norm", "largest", "mean cosine"]
    return markdown(header, rows)


def ablations(folder: Path) -> str:
    """A row for each variant."""
    content = _read(folder, "paper_ablations")
    rows = []
    for name, facts in content.get("variants", {}).items():
        final = facts["final"]
        low, high = (number(value) for value in final["interval_95"])
        seconds = f"{facts['training_cpu_seconds']:.0f} s"
        rows.append([facts["group"], name, f"{number(final['mean'])} ({low} to {high})", seconds])
    return markdown(["What changes", "variant", "mean loss at step 100 (95 %)", "CPU"], rows)


def seconds(folder: Path) -> str:
    """CPU seconds of the result files, and hours of the meta-trainings, all stages and seeds."""
    rows = [
        [f"`{content['command']}`", f"{content['cpu_seconds']:.0f} s"]
        for content in (_read(folder, path.stem) for path in sorted(folder.glob("*.json")))
        if "cpu_seconds" in content and "benchmarks.paper" in content.get("command", "")
    ]
    rows += [
        [f"`learned-optim meta-train pretrained/{name}/recipe.toml`", hours]
        for path in sorted(PRETRAINED.glob("l2l-*/**/metrics.json"))
        for name in [path.parent.relative_to(PRETRAINED).as_posix()]
        for hours in [f"{json.loads(path.read_text(encoding='utf-8'))['hours']:.2f} h of wall time"]
    ]
    return markdown(["Command", "spent"], rows)


PARTS: dict[str, Callable[[Path], str]] = {
    "gates": gates,
    "failures": failures,
    "sweep": sweep,
    "starts": starts,
    "smoothing": smoothing,
    "ablations": ablations,
    "seconds": seconds,
}


def filled(page: str, folder: Path = RESULTS) -> str:
    """The page with every part written anew.

    Raises:
        ValueError: a part has no marks on the page, or marks name no part.
    """
    names = [match[1] for match in _MARK.finditer(page)]
    if sorted(names) != sorted(PARTS):
        raise ValueError(f"the page must have the marks of {sorted(PARTS)} but has {names}")

    def part(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- {name}: begin -->\n\n{PARTS[name](folder)}\n\n<!-- {name}: end -->"

    return _MARK.sub(part, page)


def pictures(page: str) -> Iterator[Path]:
    """The files of the page's pictures."""
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page):
        yield (PAGE.parent / target).resolve()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    arguments = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    new = filled(page)
    if arguments.check:
        sys.exit(0 if new == page else "docs/paper.md is not up to date: run `make readme`")
    PAGE.write_text(new, encoding="utf-8")
    print(f"Written: {PAGE}")


if __name__ == "__main__":
    main()
