"""Recipes from TOML; `recipe` says what one holds.

The tables of a recipe that name an entry of a registry (`[rule]`, `[[tasks]]`, `[estimator]`, ...)
hold `name` and the fields of that entry's dataclass. Unknown keys are refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from learned_optim.meta_training.estimators import ESTIMATORS
from learned_optim.meta_training.imitation import Imitation
from learned_optim.meta_training.meta_loss import META_LOSSES
from learned_optim.meta_training.recipe import (
    Curriculum,
    Outer,
    Recipe,
    RecipeError,
    TaskEntry,
    Validation,
)
from learned_optim.meta_training.truncation import HORIZONS
from learned_optim.meta_training.yardstick import Normalise
from learned_optim.rules import RULES
from learned_optim.tasks import TASK_FAMILIES
from learned_optim.tasks.augment import AUGMENTATIONS
from learned_optim.tasks.base import TaskFamily

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

T = TypeVar("T")
_PLAIN = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
# TOML has infinities and NaN, and its reader takes integers of any length; all of them would
# surprise later. Floats go into tensors of float32, where optimizers still multiply them.
_LARGEST = {"int": 2**62, "float": 1e30}

_TABLES = {
    "outer": Outer,
    "validation": Validation,
    "curriculum": Curriculum,
    "normalise": Normalise,
    "imitation": Imitation,
}


def read_recipe(path: str | Path) -> Recipe:
    """Parse a TOML recipe.

    Raises:
        RecipeError: if the file can not be read or parsed, or a key or a value is not allowed.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors may write a BOM
    except OSError as error:
        raise RecipeError(f"can not read the recipe {path}: {error}") from error
    except ValueError as error:  # of TOML, of UTF-8, or of an integer of thousands of digits
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    return parse_recipe(table)


def parse_recipe(table: Mapping[str, Any]) -> Recipe:
    """Build a recipe from the parsed TOML; see `read_recipe`."""
    registries: dict[str, Mapping[str, type]] = {
        "rule": RULES,
        "estimator": ESTIMATORS,
        "meta_loss": META_LOSSES,
        "horizon": HORIZONS,
    }
    values = _table("recipe", table)
    for key, registry in registries.items():
        if key in values:
            values[key] = _build_named(key, registry, values[key])
    imitation = _table("imitation", values.get("imitation", {}))
    if "teacher" in imitation:
        teacher = _build_named("imitation teacher", RULES, imitation["teacher"])
        values["imitation"] = {**imitation, "teacher": teacher}
    for key, cls in _TABLES.items():
        if key in values:
            values[key] = build(key, cls, values[key])
    if "tasks" in values:
        values["tasks"] = tuple(_build_task(entry) for entry in _tables("tasks", values["tasks"]))
    return build("recipe", Recipe, values)


def _table(where: str, value: object) -> dict[str, Any]:
    """A copy of a table of the recipe."""
    if not isinstance(value, Mapping):
        raise RecipeError(f"[{where}] must be a table but is {value!r}")
    return dict(value)


def _tables(where: str, value: object) -> list[dict[str, Any]]:
    """A list of tables, as [[where]] gives it."""
    if not isinstance(value, list | tuple) or not all(isinstance(one, Mapping) for one in value):
        raise RecipeError(f"[{where}] must be a list of tables, [[{where}]], but is {value!r}")
    return [dict(one) for one in value]


def _build_task(values: dict[str, Any]) -> TaskEntry:
    own = {f.name for f in dataclasses.fields(TaskEntry)} - {"family"}
    taken = {key: values.pop(key) for key in own & set(values)}
    if "family" not in values:
        raise RecipeError("each [[tasks]] needs `family`")
    values["name"] = values.pop("family")
    augmentations = _tables("tasks augment", values.pop("augment", []))
    family: TaskFamily = _build_named("tasks", TASK_FAMILIES, values)
    for table in augmentations:
        family = _build_named("tasks augment", AUGMENTATIONS, {**table, "family": family})
    return build("tasks", TaskEntry, {"family": family, **taken})


def _build_named(where: str, registry: Mapping[str, type[T]], table: object) -> T:
    values = _table(where, table)
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in registry:
        raise RecipeError(f"[{where}] name = {name!r} is unknown{_nearest(str(name), registry)}")
    return build(f"{where} {name}", registry[name], values)


def build(where: str, cls: type[T], table: object) -> T:
    """Construct a dataclass from a table, refusing unknown keys with the nearest known one.

    Raises:
        RecipeError: for such a key, one that is missing, or a value that is not allowed.
    """
    values = _table(where, table)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in known:
            raise RecipeError(f"[{where}] has no key {key!r}{_nearest(key, known)}")
        _check_type(f"[{where}] {key}", str(known[key].type), value)
    missing = [key for key, field in known.items() if _needed(field) and key not in values]
    if missing:
        raise RecipeError(f"[{where}] is missing {', '.join(missing)}, which has no default")
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"[{where}]: {error}") from error


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _check_type(where: str, annotation: str, value: Any) -> None:  # noqa: ANN401
    """Refuse what a field of plain values, or a list of them, can not hold; pass over others."""
    annotation = annotation.removesuffix(" | None")  # TOML has no None
    element = annotation.removeprefix("tuple[").removesuffix(", ...]")
    if element not in _PLAIN:
        return
    if element == annotation:
        _check_plain(where, element, value)
    elif not isinstance(value, list | tuple):
        raise RecipeError(f"{where} must be a list, each of type {element}, but is {value!r}")
    else:
        for index, each in enumerate(value):
            _check_plain(f"{where}[{index}]", element, each)


def _check_plain(where: str, kind: str, value: Any) -> None:  # noqa: ANN401
    types = _PLAIN[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise RecipeError(f"{where} must be of type {kind} but is {value!r}")
    largest = _LARGEST.get(kind)
    if largest and not -largest < value < largest:
        raise RecipeError(f"{where} must be a number below {largest:.2g} in size but is {value!r}")


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"
