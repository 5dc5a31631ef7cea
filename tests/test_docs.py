"""What the documents point to exists, and their numbers are those of the result files."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path

import pytest

import learned_optim
from benchmarks.general.items import SPLITS
from benchmarks.overview import FILES, RIVALS, USES
from benchmarks.readme_tables import (
    ALL,
    BEGIN,
    END,
    NOTHING,
    README,
    for_the_readme,
    page,
    render,
    replaced,
)

ROOT = README.parent
DOCUMENTS = sorted(ROOT.glob("*.md"))
PAGES = sorted((ROOT / "docs").glob("*.md"))  # links in them are for docs/check.py
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MAKE = re.compile(r"\bmake ([a-z0-9]+)")
TARGET = re.compile(r"^([a-z0-9]+):", re.MULTILINE)
# Words in backticks that look like a file of the repository.
PATH = re.compile(r"`((?:learned_optim|benchmarks|tests|pretrained|rules)/[\w./-]+)`")
COMMAND = re.compile(r"learned-optim ([a-z][a-z-]*)")
MODULE = re.compile(r"python -m (benchmarks[\w.]*)")
SCRIPT = re.compile(r"\b(?:benchmarks|docs|examples|tests)/[\w/]+\.py\b")
# Benchmarks that `make results` leaves out, and says so.
LEFT_OUT = {"benchmarks.hand_constants", "benchmarks.step_time_cuda"}


def anchors(text: str) -> set[str]:
    """The fragments that headings can be linked by."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def broken_links(text: str) -> list[str]:
    broken = []
    for target in LINK.findall(text):
        if target.startswith("https://"):
            continue
        file, _, fragment = target.partition("#")
        if file and not (ROOT / file).exists():
            broken.append(target)
            continue
        if fragment and fragment not in anchors((ROOT / file).read_text() if file else text):
            broken.append(target)
    return broken


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_resolve(path: Path):
    assert broken_links(path.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_noticed():
    text = "# One head\n[a](README.md) [b](NONE.md) [c](#one-head) [d](#other) [e](https://x.org)"
    assert broken_links(text) == ["NONE.md", "#other"]


@pytest.mark.parametrize("path", [*DOCUMENTS, *PAGES], ids=lambda path: path.name)
def test_commands_and_files_that_are_mentioned_exist(path: Path):
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^```.*$", "", text, flags=re.MULTILINE)
    code = "\n".join(re.findall(r"`[^`]+`|^ {4}.*$", text, flags=re.MULTILINE))
    targets = set(TARGET.findall((ROOT / "Makefile").read_text()))
    assert set(MAKE.findall(code)) <= targets
    for name in PATH.findall(text):
        base = ROOT / "learned_optim" if name.startswith("rules/") else ROOT
        assert (base / name).exists(), name
    for name in SCRIPT.findall(code):
        assert (ROOT / name).exists(), name
    for module in MODULE.findall(code):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


def test_every_target_of_the_makefile_that_is_no_file_is_phony():
    text = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split())
    assert phony == set(TARGET.findall(text))


def test_every_benchmark_is_run_anew_for_the_results():
    called = dict(re.findall(r"python -m (benchmarks\S+)(.*)", (ROOT / "Makefile").read_text()))
    scripts = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text()
        for path in (ROOT / "benchmarks").rglob("*.py")
    }
    scripts = {
        name: text for name, text in scripts.items() if '\nif __name__ == "__main__"' in text
    }
    assert called.keys() == scripts.keys() - LEFT_OUT
    for name, text in scripts.items():
        keeps = '"--again"' in text or "resumes=True" in text
        assert not keeps or name in LEFT_OUT or "--again" in called[name], name


def test_every_list_of_problems_is_run_again():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    again = re.findall(r"-m benchmarks.generalization(?: --split (\w+))? --again", makefile)
    assert sorted(split or "held_out" for split in again) == sorted(SPLITS)


@pytest.mark.parametrize("name", ["LearnedOptimizer", "with_half_state", "without_matrix_stage"])
def test_the_examples_of_public_docstrings_run(name):
    [test] = doctest.DocTestFinder(recurse=False).find(getattr(learned_optim, name), globs={})
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_the_tables_of_the_readme_are_those_of_the_results():
    text = README.read_text(encoding="utf-8")
    assert replaced(text, for_the_readme()) == text, "run `make readme`"
    assert ALL.read_text(encoding="utf-8") == page(), "run `make readme`"


def test_headlines_come_first(tmp_path: Path):
    for name in ("a", "short_runs", "generalization_held_out"):
        write(tmp_path, comparison({"sgd": 0.5, "learned": 0.2}), f"{name}.json")
    text = render(tmp_path)
    order = ["generalization_held_out", "short_runs", "a"]
    assert re.findall(r"results/(\w+)\.json", text) == order
    assert re.findall(r"^## (.+)$", text, re.MULTILINE)[1:] == ["Short runs", "A"]
    assert "](short_runs.json)" in page()


def test_the_overview_divides_by_the_best_rival(tmp_path: Path):
    versus = {rival: {"ratio": 0.5, "interval_95": [0.4, 0.6], "problems": 3} for rival in RIVALS}
    judged = {"rule" + end: {"versus": versus} for end in USES}
    for name in FILES[:-1]:
        write(tmp_path, {"summary": judged}, f"{name}.json")
    assert for_the_readme(tmp_path) == NOTHING
    losses = {"default": 1.0, "default_told": 0.8, "adamw_1": 4.0, "adamw_2": 2.0, "muon_1": 1.6}
    runs = {key: {"final_loss": loss} for key, loss in (losses | {"prodigy": 5.0}).items()}
    write(tmp_path, {"parameters": 5e6, "runs": runs}, "real_scale.json")
    rows = [line for line in for_the_readme(tmp_path).splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert len(cells) == 3 * 3 + 2
    assert cells[0] == ["3 held-out problems", "as it is", *(["0.5 (0.4 to 0.6)"] * 4)]
    assert cells[-2][2:] == ["", "0.5", "0.625", "0.2"]
    assert cells[-1][2:] == ["", "0.4", "0.5", "0.16"]


def comparison(entries: dict[str, float], paper: dict[str, float] | None = None) -> dict:
    """A result file as `benchmarks.paper` writes it, cut to what a table needs."""
    best = min(
        (name for name in entries if not name.startswith("learned")), key=entries.__getitem__
    )
    ranked = {
        name: {
            "mean": value,
            "ratio": {
                "mean": value / entries[best],
                "interval_95": [0.9 * value / entries[best], 1.1 * value / entries[best]],
            },
        }
        for name, value in entries.items()
    }
    facts = {name: {"paper": (paper or {}).get(name)} for name in entries}
    case = {"title": "A task", "steps": 100, "entries": facts}
    case["metrics"] = {"final": {"best_baseline": best, "entries": ranked}}
    return {"cases": {"task": case}, "command": "python -m x", "versions": {"torch": "2.13.0"}}


def write(folder: Path, content: dict, name: str = "one.json") -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder


def test_a_comparison_becomes_a_row(tmp_path: Path):
    losses = {"sgd": 0.5, "adam": 0.4, "learned": 0.2, "learned-1": 0.3}
    text = render(write(tmp_path, comparison(losses, {"sgd": 0.5, "adam": 0.25, "learned": 0.2})))
    row = next(line for line in text.splitlines() if "A task" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "A task, 100 steps",
        "0.2",
        "0.4 (Adam)",
        "0.5 (0.45 to 0.55)",
        "0.75",
        "0.8",
    ]
    assert "torch 2.13.0" in text
    assert "benchmarks/results/one.json" in text


def test_baselines_alone_make_no_table(tmp_path: Path):
    assert render(write(tmp_path, comparison({"sgd": 0.5, "adam": 0.4}))) == NOTHING


def test_a_loss_that_was_not_finite_is_said_to_have_diverged(tmp_path: Path):
    content = comparison({"adam": 0.4, "learned": 0.2})
    learned = content["cases"]["task"]["metrics"]["final"]["entries"]["learned"]
    learned |= {"mean": None, "ratio": {"mean": None, "interval_95": [None, None]}}
    assert "| diverged | 0.4 (Adam) | diverged (" in render(write(tmp_path, content))


def test_the_marks_must_be_there():
    assert replaced(f"a {BEGIN} old {END} b", "new") == f"a {BEGIN}\n\nnew\n\n{END} b"
    for text in ("no marks", f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}"):
        with pytest.raises(ValueError, match="once each"):
            replaced(text, "new")
