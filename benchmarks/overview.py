"""The README's one table: `default` against tuned rivals, list by list, from the result files.

A row is a list of problems and a way of using the rule; the full tables, with wins, test losses and
all rivals, are those of `benchmarks.readme_tables`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.general.store import LABELS, MEAN, TOLD
from benchmarks.markdown import markdown, number, with_interval

# Weights were chosen on one more list, so that has no table.
PROBLEMS = {
    "held_out": "held-out problems",
    "domains": "problems of other kinds",
    "fine_tuning": "networks that were trained before",
}
FILES = (*(f"generalization_{name}" for name in PROBLEMS), "real_scale")
USES = {"": "as it is", MEAN: "within `averaged()`", TOLD: "`total_steps` told"}
RIVALS = ("adam", "adamw_cosine", "muon_cosine", "prodigy")
# Of `benchmarks.real_scale`: the runs of a rival begin like this.
AT_SCALE = {"adamw_cosine": "adamw", "muon_cosine": "muon", "prodigy": "prodigy"}


def overview(folder: Path) -> str:
    """The table; empty where a file of it is missing."""
    paths = {name: folder / f"{name}.json" for name in FILES}
    if not all(path.is_file() for path in paths.values()):
        return ""
    content = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    rows = [
        row
        for name, title in PROBLEMS.items()
        for row in _of_list(content[f"generalization_{name}"], title)
    ]
    header = ["Final training loss of `default`, divided by that of", ""]
    rivals = [LABELS[rival] for rival in RIVALS]
    return markdown([*header, *rivals], [*rows, *_at_scale(content["real_scale"])])


def _of_list(content: Mapping[str, Any], title: str) -> Iterator[list[str]]:
    """Geometric means over the problems of a list, with their 95 % intervals."""
    for end, use in USES.items():
        against = content["summary"]["rule" + end]["versus"]
        first = "" if end else f"{against['adam']['problems']} {title}"
        pairs = [against[rival] for rival in RIVALS]
        yield [first, use, *(with_interval(pair["ratio"], pair["interval_95"]) for pair in pairs)]


def _at_scale(content: Mapping[str, Any]) -> Iterator[list[str]]:
    """One run each, against the best run of each rival."""
    runs = content["runs"]
    best = {
        rival: min(run["final_loss"] for key, run in runs.items() if key.startswith(prefix))
        for rival, prefix in AT_SCALE.items()
    }
    title = f"a language model of {content['parameters'] / 1e6:.1f}M, one seed"
    for end, use in {key: use for key, use in USES.items() if key != MEAN}.items():
        loss = runs["default" + end]["final_loss"]
        cells = [number(loss / best[rival]) if rival in best else "" for rival in RIVALS]
        yield ["" if end else title, use, *cells]
