"""Axes of variation: config fields of a family that hold one value, or several to choose from.

In a recipe an axis is a scalar (`width = 32`: every task has it) or a list (`width = [16, 32, 64]`:
each task draws one entry, all equally likely; an entry named twice is twice as likely).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from learned_optim.tasks.base import Task, TaskFamily

Ints = int | Sequence[int]
Floats = float | Sequence[float]
Strings = str | Sequence[str]
Bools = bool | Sequence[bool]


def axis(
    *default: Any,  # noqa: ANN401
    within: tuple[float, float] | None = None,
    among: Sequence[str] | None = None,
) -> Any:  # noqa: ANN401
    """A dataclass field that is an axis.

    Args:
        default: the value, or the values to choose from; their type is the axis's type.
        within: smallest and largest value allowed.
        among: the strings allowed.
    """
    value = default[0] if len(default) == 1 else default
    metadata = {"kind": type(default[0]), "within": within, "among": among}
    return dataclasses.field(default=value, metadata=metadata)


def choices(family: TaskFamily, name: str) -> tuple[Any, ...]:
    """Every value that field `name` of `family` can take in a task."""
    value = getattr(family, name)
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


@dataclass(frozen=True)
class AxesFamily(TaskFamily):
    """A family whose fields are all axes; a task is made from one value of each.

    Class attributes:
        task: makes a task; its arguments are named like the family's fields.

    Raises:
        ValueError: for an axis without values, or a value of the wrong type or out of range.
    """

    task: ClassVar[Callable[..., Task]]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            values = tuple(_checked(field, value) for value in choices(self, field.name))
            if not values:
                raise ValueError(f"{field.name} must be a value or a list of values but is empty")
            object.__setattr__(self, field.name, values[0] if len(values) == 1 else values)

    def draw(self, generator: torch.Generator) -> dict[str, Any]:
        """One value of each axis; fixing one axis leaves the draws of the others as they were."""
        fields = dataclasses.fields(self)
        drawn = torch.rand(len(fields), generator=generator, device=generator.device).tolist()
        values = {}
        for field, fraction in zip(fields, drawn, strict=True):
            options = choices(self, field.name)
            # rand can round up to 1 in single precision.
            values[field.name] = options[min(int(fraction * len(options)), len(options) - 1)]
        return values

    def sample(self, generator: torch.Generator) -> Task:
        """Draw the structure; what else varies is drawn by the task."""
        return type(self).task(**self.draw(generator))


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:  # noqa: ANN401
    """`value`, an integer widened where the axis holds floats."""
    kind, within, among = (field.metadata[key] for key in ("kind", "within", "among"))
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(
            f"{field.name} must be of type {kind.__name__}, or a list of it, but has {value!r}"
        )
    if among is not None and value not in among:
        raise ValueError(f"{field.name} must be among {tuple(among)} but has {value!r}")
    if within is not None and not within[0] <= value <= within[1]:
        raise ValueError(f"{field.name} must be in [{within[0]}, {within[1]}] but has {value}")
    return value
