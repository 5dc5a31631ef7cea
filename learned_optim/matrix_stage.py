"""Switching the matrix stage of a rule off, where only the cost of single coordinates is wanted."""

from __future__ import annotations

import os
from dataclasses import replace

from learned_optim.hub import load_rule
from learned_optim.rules import Default
from learned_optim.weights import LoadedRule, in_memory


def without_matrix_stage(rule: str | os.PathLike[str] | LoadedRule = "default") -> LoadedRule:
    """A rule of the kind `default` without its matrix stage.

    The stage sees a small matrix in the eigenbases of its gradients (`bases`), for 8 to 21 bytes of
    state a parameter (layers of few inputs more, at most 131 kB a matrix), and orthogonalises the
    step of a larger or more uneven one. For a smaller side A that is 6 to 12 A multiply-adds a
    parameter: as much as the gradient costs at 2 to 5 A examples (tokens, pixels) in the minibatch,
    and half of that or less where a CPU multiplies bfloat16. It is cheap beside the gradient when A
    is far below that, and on a GPU in any case; with wide matrices and small minibatches on a CPU
    it can cost more than all the rest. This is the switch: for the whole optimizer, or as the
    `rule` of a param group.

    Args:
        rule: what `load_rule` takes.

    Raises:
        TypeError: `rule` is of a type that `load_rule` does not take.
        ValueError: for a rule of another kind.
        WeightsUnavailable: the rule cannot be had.
        WeightsError: the rule's files are not usable.

    Example:
        >>> import torch
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
