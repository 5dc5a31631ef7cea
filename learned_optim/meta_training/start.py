"""What a meta-training run may start from."""

from __future__ import annotations

from learned_optim.meta_training.constraint import Constraint
from learned_optim.meta_training.recipe import RecipeError
from learned_optim.rules import PARTS, ByLayer, UpdateRule, Weights


def fitted(rule: UpdateRule, weights: Weights, allowed: Constraint) -> Weights:
    """Weights found elsewhere as a start for `rule`; those that they lack stay as drawn.

    One `L2L` serves both parts of a `ByLayer`.

    Args:
        rule: to be trained.
        weights: those of the same rule, or of one that lacks some of its meta-parameters.
        allowed: the constraint, which must leave them as they are.

    Raises:
        RecipeError: one is not this rule's, is of another shape, or is not allowed.
    """
    if isinstance(rule, ByLayer) and weights.keys() == rule.part.weight_shapes().keys():
        weights = rule.joined(dict.fromkeys(PARTS, weights))
    known = rule.weight_shapes()
    for key, value in weights.items():
        if known.get(key) != tuple(value.shape):
            raise RecipeError(
                f"the weights to start from belong to another rule: {key!r} has shape "
                f"{tuple(value.shape)}, and this rule's has {known.get(key, 'no such weight')}"
            )
    for key, value in allowed(weights).items():
        off = float((value - weights[key]).abs().max())
        if off > 1e-5:
            raise RecipeError(
                f"outer.odd keeps the rule odd, but the weights to start from are not: {key!r} "
                f"is off by {off:.2g}; start from weights that were trained so, or from none"
            )
    return weights
