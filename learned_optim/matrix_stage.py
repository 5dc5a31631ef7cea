"""Switching the matrix stage of a rule off, where only the cost of single coordinates is wanted."""

from __future__ import annotations

import os
from dataclasses import replace

from learned_optim.hub import load_rule
from learned_optim.rules import Default
from learned_optim.weights import LoadedRule, in_memory


def without_matrix_stage(rule: str | os.PathLike[str] | LoadedRule = "default") -> LoadedRule:
    """A rule of the kind `default` without its matrix stage.

    The stage sees a matrix in the eigenbases of its gradients (`bases`), in blocks of up to 128 x
    128: some 2000 multiply-adds a parameter, as much as the gradient costs at 600 examples (tokens,
    pixels) in the minibatch, and 8 to 21 bytes of state a parameter. Or, where a matrix is more
    uneven than 5 to 1, it orthogonalises the step of A x B, A <= B, by 7 to 15 A multiply-adds a
    parameter, half of that or less where a CPU multiplies bfloat16. With large matrices and small
    minibatches on a CPU either can cost more than all the rest. This is the switch: for the whole
    optimizer, or as the `rule` of a param group.

    Args:
        rule: what `load_rule` takes.

    Raises:
        ValueError: for a rule of another kind.
        WeightsUnavailable: the rule cannot be had.
        WeightsError: the rule's files are not usable.

    Example:
        >>> from learned_optim import LearnedOptimizer, without_matrix_stage
        >>> layer = torch.nn.Linear(4, 1)
        >>> optimizer = LearnedOptimizer(layer.parameters(), rule=without_matrix_stage())
    """
    loaded = load_rule(rule)
    if type(loaded.rule) is not Default:
        raise ValueError(
            f"only rules of the kind 'default' have a matrix stage, not {loaded.name!r}"
        )
    if not loaded.rule.matrix:
        return loaded
    return in_memory(replace(loaded.rule, matrix=False), dict(loaded.weights), name=loaded.name)
