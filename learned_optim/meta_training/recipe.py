"""Recipes: everything that determines a meta-training run, as frozen dataclasses.

`recipe_file` reads them from TOML.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from learned_optim.errors import WeightsError
from learned_optim.meta_training.estimators import GradientEstimator
from learned_optim.meta_training.estimators.tbptt import TBPTT
from learned_optim.meta_training.imitation import Imitation
from learned_optim.meta_training.meta_loss import MetaLoss, Sum
from learned_optim.meta_training.truncation import Constant, Horizon
from learned_optim.meta_training.yardstick import Normalise
from learned_optim.rules import UpdateRule
from learned_optim.tasks.base import TaskFamily
from learned_optim.tasks.splits import check_together, check_trainable
from learned_optim.weight_checks import check_name

SCORES = ("loss", "log_adam")
# Those of torch.optim that step along dense gradients of any shape, without a closure.
OPTIMIZERS = tuple(
    name
    for name in (
        "Adadelta",
        "Adafactor",  # from torch 2.5 on
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "ASGD",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
    )
    if hasattr(torch.optim, name)
)


class RecipeError(ValueError):
    """A recipe that can not be used; the message names the key, the value and what is allowed."""


@dataclass(frozen=True)
class TaskEntry:
    """A family that meta-training samples.

    Attributes:
        family: the task family with its config.
        runs: optimizees trained side by side, all of one structure.
        workers: streams of such runs, each with structures of its own.
        weight: factor on this family's meta-gradient.

    Raises:
        ValueError: if the family can sample tasks of the meta-test set.
    """

    family: TaskFamily
    runs: int = 1
    workers: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.runs < 1 or self.workers < 1 or self.weight <= 0:
            raise ValueError(f"runs >= 1, workers >= 1 and weight > 0 expected: {self}")
        check_trainable(self.family)

    @property
    def label(self) -> str:
        """What logs call it."""
        return self.family.name


@dataclass(frozen=True)
class Outer:
    """The outer loop.

    Attributes:
        steps: updates of the meta-parameters.
        optimizer: a class of torch.optim, one of `OPTIMIZERS`.
        lr: its learning rate.
        final_lr: fraction of `lr` that a cosine reaches at the last step; 1 keeps it constant.
        warmup: steps over which the rate rises linearly.
        clip: largest norm of the meta-gradient; 0 does not clip.
        clip_each: the same of what each worker gives to it, before the mean: so no family drowns
            the others, whatever the size of its meta-loss.
        ema: decay of the running mean of the meta-parameters that is validated and exported in
            their place; 0 keeps none.
        odd: keep the rule odd in the gradient (`constraint.odd_part`).
    """

    steps: int = 1000
    optimizer: str = "Adam"
    lr: float = 3e-3
    final_lr: float = 1.0
    warmup: int = 0
    clip: float = 0.0
    clip_each: float = 0.0
    ema: float = 0.0
    odd: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lr <= 0 or self.warmup < 0 or min(self.clip, self.clip_each) < 0:
            raise ValueError(f"steps >= 1, lr > 0, clips >= 0, warmup >= 0 expected: {self}")
        if not 0 <= self.final_lr <= 1 or not 0 <= self.ema < 1:
            raise ValueError(f"final_lr in [0, 1] and ema in [0, 1) expected: {self}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer must be a class of torch.optim that can train a rule, one of "
                f"{', '.join(OPTIMIZERS)}, but is {self.optimizer!r}"
            )


@dataclass(frozen=True)
class Curriculum:
    """Longer episodes once the shorter ones are learned (Chen et al. 2020).

    The drawn horizon is multiplied by the factor of the current stage. A stage ends when
    `patience` validations in a row have not improved on the stage's best, and only if the stage
    has improved on the best of the stages before; otherwise the horizon has stopped to pay.

    Attributes:
        factors: one for each stage, rising.
        patience: validations without improvement that end a stage.
    """

    factors: tuple[float, ...] = (1.0,)
    patience: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(float(factor) for factor in self.factors))
        if not self.factors or list(self.factors) != sorted(self.factors) or self.factors[0] <= 0:
            raise ValueError(f"factors must be positive and rising but are {self.factors}")
        if self.patience < 1:
            raise ValueError(f"patience must be at least 1 but is {self.patience}")


@dataclass(frozen=True)
class Validation:
    """Fixed optimizees that choose the checkpoint to keep.

    Attributes:
        every: outer steps between two validations.
        runs: optimizees of each family.
        steps: inner steps of each.
        lengths: horizons to validate at, as multiples of `steps`: a rule that is good at the
            horizon it was trained at often fails beyond it.
        tail: the mean loss over this last fraction of the steps counts (1: all of them).
        score: "loss": that mean. "log_adam": its logarithm relative to the best of a grid of
            Adam's rates on the same optimizees, which puts families on one scale.
        worst: the score is the mean over families and lengths plus `worst` times their maximum.
        tell_horizon: tell the rule the horizon.
    """

    every: int = 100
    runs: int = 16
    steps: int = 100
    lengths: tuple[float, ...] = (1.0,)
    tail: float = 0.05
    score: str = "loss"
    worst: float = 0.0
    tell_horizon: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", tuple(float(length) for length in self.lengths))
        if self.every < 1 or self.runs < 1 or self.steps < 1:
            raise ValueError(f"every, runs and steps must be at least 1: {self}")
        if not 0 < self.tail <= 1:
            raise ValueError(f"tail must be in (0, 1] but is {self.tail}")
        if not self.lengths or min(self.lengths) <= 0 or self.worst < 0:
            raise ValueError(f"lengths > 0 and worst >= 0 expected: {self}")
        if self.score not in SCORES:
            raise ValueError(f"score must be one of {SCORES} but is {self.score!r}")

    def horizons(self) -> list[int]:
        """Inner steps of each length."""
        return [max(1, round(self.steps * length)) for length in self.lengths]


@dataclass(frozen=True)
class Recipe:
    """A whole meta-training run.

    Attributes:
        name: of the rule that comes out, see `weight_checks.check_name`.
        seed: of everything random.
        rule: the rule with its config.
        tasks: the families sampled.
        estimator: of the meta-gradient.
        meta_loss: of a window.
        normalise: the unit of the losses that it sees.
        imitation: of a hand-written rule, at first.
        horizon: length of an episode.
        curriculum: how it grows.
        outer: the outer loop.
        validation: how the checkpoint is chosen.
        start: folder of weights to start from, relative to the recipe; drawn afresh without.
        stagger: see `truncation.Worker`.
        checkpoint_minutes: time between two checkpoints.

    Raises:
        ValueError: for a name that no rule may have, for no tasks, for some that must not be
            mixed, or for a rule that the estimator can not train.
    """

    name: str
    rule: UpdateRule
    tasks: tuple[TaskEntry, ...]
    seed: int = 0
    estimator: GradientEstimator = field(default_factory=TBPTT)
    meta_loss: MetaLoss = field(default_factory=Sum)
    normalise: Normalise = field(default_factory=Normalise)
    imitation: Imitation = field(default_factory=Imitation)
    horizon: Horizon = field(default_factory=Constant)
    curriculum: Curriculum = field(default_factory=Curriculum)
    outer: Outer = field(default_factory=Outer)
    validation: Validation = field(default_factory=Validation)
    start: str = ""
    stagger: bool = False
    checkpoint_minutes: float = 1.0

    def __post_init__(self) -> None:
        try:
            check_name(self.name, "the trained rule")
        except WeightsError as error:
            raise RecipeError(str(error)) from error
        if not self.tasks:
            raise ValueError("tasks is empty: name at least one family to train on, as [[tasks]]")
        check_together(entry.family for entry in self.tasks)
        self.estimator.check(self.rule)
