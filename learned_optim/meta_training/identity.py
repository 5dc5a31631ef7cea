"""Which run a checkpoint is of: its recipe as plain data, compared before the run goes on.

Without it a checkpoint that lies in the way would be continued under any recipe whose weights have
the same shapes, and what one recipe made would be exported beside another.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from learned_optim.meta_training.checkpoint import CheckpointError
from learned_optim.meta_training.recipe import Recipe


def identity(recipe: Recipe, start: str, learned: str) -> dict[str, Any]:
    """All of a recipe that the state of a run follows from.

    Left out is what may change as a run goes on: its name, the time between checkpoints, and the
    number of outer steps where the rate does not fall towards the last of them. The rest of the
    validation belongs to it, as that decides which weights are kept and when horizons grow.

    Args:
        recipe: of the run.
        start: sha256 of the weights that it started from, as a folder has many names and may hold
            other weights next time; empty for those that were drawn.
        learned: the same of the teacher's.
    """
    found = plain(recipe)
    del found["name"], found["checkpoint_minutes"]
    if recipe.outer.final_lr == 1:
        del found["outer"]["steps"]
    found["imitation"]["learned"] = _weights(learned)
    return found | {"start": _weights(start)}


def _weights(sha256: str) -> str:
    return f"weights of sha256 {sha256}" if sha256 else ""


def plain(value: Any) -> Any:  # noqa: ANN401
    """Dataclasses as dicts, with the name that they are registered under, and tuples as lists."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        name = getattr(type(value), "name", None)
        return fields if name is None else {"name": name, **fields}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def filled(saved: Any, value: Any) -> Any:  # noqa: ANN401
    """`saved`, of `plain`, with the `later` fields that older ones lack where they mean a default.

    Args:
        saved: from a checkpoint.
        value: the dataclass, or what it holds, that is to go on with it.
    """
    if isinstance(saved, list) and isinstance(value, tuple):
        return [filled(one, of) for one, of in itertools.zip_longest(saved, value)]
    if not isinstance(saved, dict) or not dataclasses.is_dataclass(value):
        return saved
    below = {key: filled(each, getattr(value, key, None)) for key, each in saved.items()}
    for field in dataclasses.fields(value):
        if field.metadata.get("later"):
            below.setdefault(field.name, field.default)
    return below


def check(state: Mapping[str, Any], now: dict[str, Any], recipe: Recipe) -> None:
    """Refuse the state of another run.

    Args:
        state: of a `MetaTrainer`. Those from before the recipe was in it are let through.
        now: `identity` of the run that is to go on with it.
        recipe: of that run.

    Raises:
        CheckpointError: naming the first key that differs, with both values.
    """
    if "recipe" not in state:
        return
    found, steps = difference(filled(state["recipe"], recipe), now), recipe.outer.steps
    if not found and state["step"] > steps:
        found = f"outer.steps is {steps} in the recipe, but {state['step']} steps have been made"
    if found:
        raise CheckpointError(
            f"the checkpoint was made by another recipe: {found}. Go on with the recipe that made "
            "it, or name another --output for this one"
        )


def difference(saved: Any, now: Any, key: str = "") -> str:  # noqa: ANN401
    """The first key at which two of `plain` differ, with both values; empty where none does.

    A key that one of them lacks is passed over, so that a run may go on after the library has
    gained one.
    """
    if isinstance(saved, dict) and isinstance(now, dict):
        shared = [name for name in saved if name in now]
        below = [(f"{key}.{name}".lstrip("."), saved[name], now[name]) for name in shared]
    elif any(isinstance(each, dict) for each in (*_items(saved), *_items(now))):
        pairs = itertools.zip_longest(_items(saved), _items(now))
        below = [(f"{key}[{index}]", *pair) for index, pair in enumerate(pairs)]
    else:
        same = saved == now
        return "" if same else f"{key} is {saved!r} in the checkpoint and {now!r} in the recipe"
    return next(filter(None, (difference(one, other, where) for where, one, other in below)), "")


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
