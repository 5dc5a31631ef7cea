"""A constraint on meta-parameters: a linear subspace that meta-training does not leave."""

from __future__ import annotations

from collections.abc import Callable

from learned_optim.rules import UpdateRule, Weights

Constraint = Callable[[Weights], Weights]


def free(weights: Weights) -> Weights:
    """No constraint."""
    return weights


def odd_part(rule: UpdateRule) -> Constraint:
    """To the nearest weights with which the rule answers to the opposite gradient oppositely.

    A rule that is not odd may answer to a zero gradient with a step. Where inputs are never
    negative, as pixels are, all weights of a unit then drift the same way, and over an episode the
    drifts add up.
    """

    def project(weights: Weights) -> Weights:
        images = rule.mirrored(weights)
        return {key: (value + images[key]) / 2 for key, value in weights.items()}

    return project
