"""The page of the reproduction says what the result files say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.paper import page


def test_the_page_is_up_to_date_and_its_pictures_exist():
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text) == text, "run `python -m benchmarks.paper.page`"
    found = list(page.pictures(text))
    assert len(found) >= 4
    assert all(path.is_file() for path in found)


def test_its_commands_exist():
    text = page.PAGE.read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m (benchmarks[\w.]*)", text))
    root = page.PAGE.parent.parent
    assert {"benchmarks.paper.anatomy", "benchmarks.paper.cifar"} <= modules
    assert all((root / f"{module.replace('.', '/')}.py").is_file() for module in modules)


def case(learned: float | None, best: float, paper: float | None = None) -> dict:
    ratio = None if learned is None else learned / best
    entries = {"adam": {"paper": 0.4}, "learned": {"paper": paper}}
    ranked = {
        "adam": {"mean": best, "ratio": {"mean": 1.0}},
        "learned": {"mean": learned, "ratio": {"mean": ratio}},
    }
    metrics = {"final": {"best_baseline": "adam", "entries": ranked}}
    return {"title": "A case", "steps": 100, "entries": entries, "metrics": metrics}


@pytest.mark.parametrize(
    ("learned", "best", "expected"),
    [(0.2, 0.4, "hit"), (0.26, 0.4, "miss"), (0.2, 0.25, "miss"), (None, 0.4, "miss")],
)
def test_a_gate_is_hit_only_by_loss_and_ratio_together(learned, best, expected, tmp_path: Path):
    content = {"cases": {"mnist_base": case(learned, best, paper=0.3)}}
    (tmp_path / "paper_mnist.json").write_text(json.dumps(content))
    rows = page.gates(tmp_path).splitlines()
    row = next(line for line in rows if "A case" in line)
    assert row.endswith(f"| {expected} |")
    assert "0.3, ratio 0.75" in row
    assert sum(line.endswith("| not run |") for line in rows) == len(page.GATES) - 1


def test_a_case_without_a_gate_has_no_verdict():
    assert page.verdict("mnist_relu", 2.5, 7.0) == "-"
    assert page.verdict("cifar_10", 1.5, 0.99) == "hit"


def test_the_marks_must_be_those_of_the_parts():
    with pytest.raises(ValueError, match=r"must have the marks of .* but has \['gates'\]"):
        page.filled("<!-- gates: begin --> x <!-- gates: end -->")
