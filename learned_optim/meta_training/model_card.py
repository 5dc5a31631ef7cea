"""The model card beside a rule's weights: `README.md` with the front matter that the Hub reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence

from learned_optim.rules import UpdateRule

# What one line of a table can show; longer values (curves, histories) stay in metrics.json.
_PLAIN = (str, bool, int, float)
_DIGITS = 4

_TEMPLATE = """\
---
license: apache-2.0
library_name: learned-optim
pipeline_tag: other
tags:
{tags}{datasets}
---

# {name}

A learned update rule for `learned_optim`: weights of the rule `{rule}` ({count} numbers), \
meta-trained as `recipe.toml` says. It takes the place of an optimizer's hand-written update.

```python
from learned_optim import LearnedOptimizer

optimizer = LearnedOptimizer(model.parameters(), rule="{source}")
```

## Configuration

{config}

## Measured

From `metrics.json`, which has the curves too.

{metrics}

## Limits

{limits}

## How it was made

`recipe.toml` holds every setting and the seed. To make it again:

    learned-optim meta-train {recipe}

## Licence

Code and weights: Apache-2.0.
"""

_NO_LIMITS = (
    "Not stated. Expect a rule to do well on tasks like those in its recipe, for about as many "
    "steps, and measure anything else before relying on it."
)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.{_DIGITS}g}" if math.isfinite(value) else str(value)
    return str(value)


def _flatten(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """`(dotted key, text)` of every plain value, nested mappings in order."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, _PLAIN):
            yield f"{prefix}{key}", _text(value)


def _table(head: tuple[str, str], values: Mapping[str, object]) -> str:
    rows = list(_flatten(values))
    if not rows:
        return "None."
    # A bar would end the cell.
    lines = [f"| {key} | {text.replace('|', chr(92) + '|')} |" for key, text in rows]
    return "\n".join([f"| {head[0]} | {head[1]} |", "| --- | --- |", *lines])


def _list(values: Sequence[str]) -> str:
    # JSON strings are YAML strings, whatever they contain.
    return "\n".join(f"- {json.dumps(value)}" for value in values)


def render(
    name: str,
    rule: UpdateRule,
    recipe: str,
    metrics: Mapping[str, object],
    *,
    source: str | None = None,
    limits: Sequence[str] = (),
    datasets: Sequence[str] = (),
) -> str:
    """The text of a model card.

    Args:
        name: of the trained rule; the card's title.
        rule: its config.
        recipe: path of the recipe, as a user who rebuilds it would give it.
        metrics: what `metrics.json` holds; nested mappings are flattened with dots, and anything
            but plain values (curves) is left out.
        source: what to pass as `rule=` to load it; `name`, for a bundled rule, by default.
        limits: sentences on where it is known to fail.
        datasets: names of the Hub's data sets that it was meta-trained on.

    Returns:
        Markdown that begins with YAML front matter.

    Raises:
        ValueError: for a name, recipe or source that has a line break or a quote in it.
    """
    for key, value in (("name", name), ("recipe", recipe), ("source", source or name)):
        if not value.isprintable() or '"' in value or not value:
            raise ValueError(
                f"{key} must be one line of printable characters without quotes but is {value!r}"
            )
    count = sum(math.prod(shape) for shape in rule.weight_shapes().values())
    return _TEMPLATE.format(
        name=name,
        rule=rule.name,
        count=f"{count:,}",
        source=source or name,
        recipe=recipe,
        tags=_list(["learned-optimizer", "learning-to-learn", "meta-learning", "pytorch"]),
        datasets="\ndatasets:\n" + _list(datasets) if datasets else "",
        config=_table(("setting", "value"), rule.config()),
        metrics=_table(("measure", "value"), metrics),
        limits="\n".join(f"- {limit}" for limit in limits) or _NO_LIMITS,
    )
