"""The pages that are made, not written: from result files, rules, and the repository's documents.

Everything goes into `docs/made/`, which git ignores. No number is typed into a page by hand.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.readme_tables import markdown, render
from benchmarks.results import RESULTS
from learned_optim.describe import state_bytes
from learned_optim.hub import load_rule
from learned_optim.optimizer import DEFAULT_RULE
from learned_optim.publishing import licence
from learned_optim.tasks import TASK_FAMILIES
from learned_optim.tasks.splits import HELD_OUT, META_TEST
from learned_optim.weights import bundled_folder, bundled_names

ROOT = Path(__file__).resolve().parent.parent
MADE = ROOT / "docs" / "made"
# Documents of the repository that are pages here too.
DOCUMENTS = {"DESIGN.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"}
# What each picture in benchmarks/results shows; one that is not here gets the name of its file.
PICTURES = {
    "paper_quadratic": "The paper's figure 4, left: random quadratics in ten dimensions.",
    "paper_mnist": "The paper's figure 4, middle: a small network on MNIST.",
    "step_time": "What a step costs, against torch's Adam.",
    "half_state": "Where trainings end with the state in float16, against float32.",
    "estimators": "Bias and variance of the estimators of the meta-gradient.",
    "meta_training_throughput": "Inner steps a second of meta-training.",
}


def write() -> None:
    """Make all pages; one that has not changed keeps its time, so that it is not built again."""
    makers = PARTS | {Path(name).stem.lower(): _document(name) for name in DOCUMENTS}
    MADE.mkdir(exist_ok=True)
    for name, make in makers.items():
        path, text = MADE / f"{name}.md", make().rstrip() + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _provenance(content: Mapping[str, Any]) -> str:
    versions, hardware = content["versions"], content["hardware"]
    return (
        f"`{content['command']}`, torch {versions['torch']}, Python {versions['python']}, "
        f"{hardware['processor']}, {hardware['cores']} cores."
    )


def _cell(text: object) -> str:
    """Text that Markdown leaves alone, in a cell."""
    return html.escape(str(text)).replace("|", "\\|").replace("_", "\\_").replace("*", "\\*")


def _code(text: str) -> str:
    return f"````text\n{text}\n````"


def evidence() -> str:
    """All tables; their links lead to files that are not on the site."""
    return re.sub(r"\[(`[^`]+`)\]\([^)]*\)", r"\1", render(level=3))


def pictures() -> str:
    """Every picture that a benchmark has drawn."""
    blocks = []
    for path in sorted(RESULTS.glob("*.png")):
        caption = PICTURES.get(path.stem, path.stem.replace("_", " "))
        blocks.append(f":::{{figure}} {_relative(path)}\n:alt: {caption}\n\n{caption}\n:::")
    return "\n\n".join(blocks)


def faults() -> str:
    """What a user sees when something goes wrong, as `tests/hub_faults.py` provoked it."""
    content = _results("faults.json")
    blocks = []
    for group, rows in content["faults"].items():
        blocks.append(f"### {group}")
        for row in rows:
            head = f"**{row['fault'][0].upper()}{row['fault'][1:]}** ({row['seconds']} s): "
            seen = f"`{row['type']}`\n\n{_code(row['message'])}" if row["type"] else ""
            blocks.append(f"{head}{row['outcome']}{'. ' if seen else '.'}{seen}")
    return "\n\n".join([*blocks, f"<sub>{_provenance(content)}</sub>"])


def examples() -> str:
    """Each example: what it shows, the command, what was printed, the source."""
    content, blocks = _results("examples.json"), []
    for row in content["examples"]:
        path = ROOT / "examples" / f"{row['name']}.py"
        text = re.match(r'"""(.*?)"""', path.read_text(encoding="utf-8"), re.DOTALL)
        assert text is not None
        title, _, rest = text[1].strip().partition("\n")
        rest = re.sub(r"\n\n( {4}.*\n?)+", "\n", f"\n{rest}\n").strip()
        blocks += [
            f"## {row['name']}",
            f"{title} {rest}",
            _code(f"$ {row['command']}\n{row['output']}"),
            f"{row['cpu_seconds']:.0f} s of processor time.",
            f":::{{literalinclude}} {_relative(path)}\n:language: python\n:lines: "
            f"{_first_line(path)}-\n:::",
        ]
    return "\n\n".join([*blocks, f"<sub>{_provenance(content)}</sub>"])


def _first_line(path: Path) -> int:
    """Where a script's imports begin, after its docstring."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.startswith(("import", "from torch")))


def new_user() -> str:
    """The transcript of `tests/new_user.py`."""
    content = _results("new_user.json")
    typed = [f"$ {one['command']}\n{one['output']}".rstrip() for one in content["typed"]]
    return f"{_code(chr(10).join(typed))}\n\n<sub>{_provenance(content)}</sub>"


def rules() -> str:
    """What is bundled, and what it costs."""
    rows = []
    for name in bundled_names():
        loaded = load_rule(name)
        count = sum(weight.numel() for weight in loaded.weights.values())
        each, _ = state_bytes(loaded.lean().rule)
        mark = " (default)" if name == DEFAULT_RULE else ""
        stated = licence(bundled_folder(name)) or "not stated"
        rows.append([f"`{name}`{mark}", f"`{loaded.rule.name}`", f"{count:,}", f"{each}", stated])
    head = ["name", "rule", "learned numbers", "bytes of state a parameter", "licence"]
    small = "In small matrices `default` takes 8 to 21 bytes a parameter more."
    return f"{markdown(head, rows)}\n\n{small}"


def tasks() -> str:
    """The families, and which of them are kept for the test."""
    names = ", ".join(f"`{name}`" for name in sorted(TASK_FAMILIES))
    held = "\n".join(f"- {held_out}" for held_out in HELD_OUT)
    test = ", ".join(f"`{name}`" for name in META_TEST)
    return f"{names}.\n\nHeld out of training and validation:\n\n{held}\n\nThe test: {test}."


def _document(name: str) -> Callable[[], str]:
    """A document of the repository, its links to other documents turned into links to pages."""

    def read() -> str:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](../")
        return re.sub(r"\]\(([A-Z]+\.md)\)", _page, text)

    return read


def _page(link: re.Match[str]) -> str:
    return f"]({link[1].lower()})" if link[1] in DOCUMENTS else "](../index.md)"


def _relative(path: Path) -> str:
    """From the pages that include the parts."""
    return Path(os.path.relpath(path, MADE.parent)).as_posix()


# Parts of the pages beside this file.
PARTS: dict[str, Callable[[], str]] = {
    "evidence_tables": evidence,
    "pictures": pictures,
    "faults": faults,
    "examples": examples,
    "new_user": new_user,
    "rules": rules,
    "tasks": tasks,
}
