"""Keeping the state of the paper's rule in half precision, for half the memory and time."""

from __future__ import annotations

import os
from dataclasses import replace

from learned_optim.hub import load_rule
from learned_optim.rules import L2L
from learned_optim.weights import LoadedRule, in_memory


def with_half_state(rule: str | os.PathLike[str] | LoadedRule) -> LoadedRule:
    """A rule of the kind `l2l` or `by_layer` that keeps its state in float16 between steps.

    The state takes half of the memory: two layers of 20 units 160 bytes a parameter in place of
    320. The compiled kernels then also compute in 16 bits, where the rule sees logarithms of
    gradients (`log_sign`) and the CPU has AVX2 or AVX-512: each activation is off by about 1e-4, as
    much as float16 rounds what it stores, and a step takes half to four fifths of the time.
    Everywhere else arithmetic stays in float32. Where a training ends does not tell the two apart,
    but where it gets far below what a rule was trained for (`benchmarks/half_state.py`); single
    runs part, as they do under any rounding. The paper has float32.

    Args:
        rule: what `load_rule` takes.

    Raises:
        TypeError: `rule` is of a type that `load_rule` does not take.
        ValueError: for a rule of another kind.
        WeightsUnavailable: the rule cannot be had.
        WeightsError: the rule's files are not usable.

    Example:
        >>> import torch
        >>> from learned_optim import LearnedOptimizer, with_half_state
        >>> layer = torch.nn.Linear(4, 1)
        >>> optimizer = LearnedOptimizer(layer.parameters(), rule=with_half_state("l2l-mnist"))
    """
    loaded = load_rule(rule)
    if not isinstance(loaded.rule, L2L):
        raise ValueError(
            "only rules of the kinds 'l2l' and 'by_layer' can have their state halved, not "
            f"{loaded.name!r}"
        )
    if loaded.rule.state == "float16":
        return loaded
    halved = replace(loaded.rule, state="float16")
    return in_memory(halved, dict(loaded.weights), name=loaded.name)
