"""Imports point down, without cycles, and the heavy ones are made only where they are needed."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import learned_optim

PACKAGE = Path(learned_optim.__file__).parent

# The layer of each module or folder of the package; a module may import its own layer and those
# below. A new module goes into this table.
LAYERS = {
    "features": 0,
    "cells": 0,
    "planned": 0,
    "alarm": 0,
    "errors": 0,
    "command": 0,
    "files": 0,
    "factory": 0,
    "averages": 0,
    "options": 0,
    "together": 0,
    "matrices": 0,
    "bases": 0,
    "kernels": 0,
    "tasks": 0,
    "rules": 1,
    "backends": 2,
    "weight_checks": 2,
    "weights": 2,
    "shards": 2,
    "meta_training": 2,
    "client": 2,
    "publishing": 3,
    "hub": 3,
    "cost": 4,
    "describe": 4,
    "resume": 3,
    "matrix_stage": 4,
    "half_state": 4,
    "optimizer": 4,
    "reporting": 0,
    "compare": 5,
    "demo": 5,
    "cli": 6,
    "__main__": 7,
}

# What a layer number alone does not say: (importer, imported).
FORBIDDEN = {
    ("meta_training", "backends"),
    ("backends", "meta_training"),
    ("weights", "meta_training"),
    ("weights", "backends"),
    ("backends", "weights"),
    ("optimizer", "tasks"),
    ("optimizer", "meta_training"),
    ("hub", "tasks"),
    ("hub", "meta_training"),
}

# The only importers of a package, each inside a function: `import learned_optim` stays light.
LAZY = {"huggingface_hub": {"client", "hub", "publishing", "tasks.datasets"}}


class Import(NamedTuple):
    """One import statement: who imports what, where, and whether only when a function runs."""

    importer: str
    imported: str
    line: int
    lazy: bool


def module_name(path: Path) -> str:
    """`tasks.datasets` for learned_optim/tasks/datasets.py; `tasks` for its __init__."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def read_imports(source: str, importer: str, *, package: bool = False) -> list[Import]:
    """Every import of one module, absolute names; `if TYPE_CHECKING:` counts like any other."""
    found = []

    def visit(node: ast.AST, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(importer, alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = f"learned_optim.{importer}".rstrip(".").split(".")
                parents = parents[: len(parents) - node.level + package]
                base = ".".join([*parents, base]).rstrip(".")
            # `from package import name`: the name may be a module, so it is kept.
            found.extend(
                Import(importer, f"{base}.{alias.name}", node.lineno, lazy) for alias in node.names
            )
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, lazy)

    visit(ast.parse(source), lazy=False)
    return found


def all_imports() -> list[Import]:
    imports = []
    for path in sorted(PACKAGE.rglob("*.py")):
        imports += read_imports(
            path.read_text(encoding="utf-8"),
            module_name(path),
            package=path.name == "__init__.py",
        )
    return imports


def inside(imported: str) -> str | None:
    """The name below `learned_optim.`, or None for another package."""
    top, _, rest = imported.partition(".")
    return rest if top == "learned_optim" else None


def top(name: str) -> str:
    return name.partition(".")[0]


def violations(imports: list[Import]) -> list[str]:
    """What breaks the rules, one sentence each."""
    problems = []
    for item in imports:
        where = f"learned_optim.{item.importer} line {item.line}"
        target = inside(item.imported)
        owners = LAZY.get(top(item.imported))
        if owners is not None and (item.importer not in owners or not item.lazy):
            problems.append(f"{where} imports {item.imported}: only {sorted(owners)}, lazily")
        # The package's own __init__ stands above all, and so may import anything but is imported
        # by none, except for what it defines itself.
        if target is None or not item.importer or top(target) not in LAYERS:
            continue
        pair = (top(item.importer), top(target))
        if LAYERS[pair[1]] > LAYERS[pair[0]]:
            problems.append(f"{where} imports {item.imported}, which is a layer above")
        if pair in FORBIDDEN:
            problems.append(f"{where} imports {item.imported}, which {pair[0]} must not know")
    return problems


def cycle_in(imports: list[Import]) -> list[str] | None:
    """A cycle of modules that import each other at import time, if there is one."""
    modules = {module_name(path) for path in PACKAGE.rglob("*.py")} | {
        item.importer for item in imports
    }
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for item in imports:
        target = inside(item.imported)
        if target is None:
            continue
        # The longest prefix that is a module: the rest is a name inside it.
        while target and target not in modules:
            target = target.rpartition(".")[0]
        # A package's __init__ gathers its own modules, which is no cycle; they may not, however,
        # import from it.
        if target and target != item.importer:
            graph[item.importer].add(target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return None


def test_imports_point_down_and_heavy_ones_are_lazy():
    assert violations(all_imports()) == []


def test_no_modules_import_each_other_in_a_circle():
    assert cycle_in(all_imports()) is None


def test_every_module_has_a_layer():
    names = {top(module_name(path)) for path in PACKAGE.rglob("*.py")} - {""}
    assert names <= LAYERS.keys(), "add the new module to LAYERS"


@pytest.mark.parametrize(
    ("importer", "source", "complaint"),
    [
        ("rules.l2l", "from learned_optim.optimizer import LearnedOptimizer", "a layer above"),
        ("rules.l2l", "from learned_optim import weights", "a layer above"),
        ("features", "from .rules.base import State", "a layer above"),
        ("tasks.base", "from ..rules import RULES", "a layer above"),
        ("kernels", "def f():\n    import learned_optim.backends", "a layer above"),
        ("meta_training.unroll", "from learned_optim.backends import choose", "must not know"),
        ("optimizer", "def f():\n    from learned_optim.tasks import base", "must not know"),
        ("optimizer", "if TYPE_CHECKING:\n    import learned_optim.meta_training", "must not"),
        ("hub", "import huggingface_hub", "lazily"),
        ("weights", "def f():\n    from huggingface_hub import hf_hub_download", "only"),
    ],
)
def test_the_check_sees(importer: str, source: str, complaint: str):
    problems = violations(read_imports(source, importer))
    assert len(problems) == 1
    assert complaint in problems[0]


def test_the_check_lets_the_allowed_pass():
    imports = read_imports("def f():\n    from huggingface_hub import HfApi", "hub")
    imports += read_imports("from learned_optim.rules import RULES\nimport torch", "weights")
    imports += read_imports("from learned_optim import __version__", "weights")
    assert violations(imports) == []


def test_the_check_sees_a_circle():
    circle = read_imports("from learned_optim.cells import lstm", "features")
    circle += read_imports("def f():\n    from learned_optim import features", "cells")
    cycle = cycle_in(circle)
    assert cycle is not None
    assert {"cells", "features"} <= set(cycle)


def test_import_loads_no_client_no_tasks_and_no_extras():
    unwanted = ("huggingface_hub", "learned_optim.tasks", "learned_optim.meta_training")
    unwanted += ("sklearn", "matplotlib", "tqdm", "pyarrow", "tensorboard")
    script = (
        "import sys, torch\nbefore = set(sys.modules)\nimport learned_optim\n"
        f"print(*(set({unwanted!r}) & (set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
