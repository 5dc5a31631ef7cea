"""Imitation of another rule.

Of a hand-written one, while the learned one is still worse; or of one that was learned before, to
make it smaller or to bring it within a constraint.

Chen, Zhang, Zhou, Chang, Liu, Amini, Wang, "Training stronger baselines for learning to
optimize", NeurIPS 2020, https://arxiv.org/abs/2010.09089. Paper / ours: off-policy, on trajectories
of hand-written optimizers / the teacher watches the learned rule's own trajectory, sees the same
gradients, and its step is the target there, so that what is imitated is what the rule will meet.

The term that is added to the meta-loss is `strength * mean over the window of gap`, with

    gap_t = ||step_t - target_t||^2 / ||target_t||^2

for each run: 1 for a rule that does nothing, 0 for a perfect pupil, whatever the task's scale.
Where tensors differ in size by orders of magnitude, as the layers of a network do, the small ones
would not be learned; `per_tensor` takes the gap of each tensor and then their mean, in which a
vector counts a tenth of a matrix: the biases' gaps are the largest, and alike they would take most
of the pupil's attention. The target is a constant: nothing is differentiated through the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from learned_optim.meta_training.unroll import (
    Carry,
    Layout,
    Runs,
    apply_rule,
    initial_state,
    make_clock,
)
from learned_optim.rules import L2L, Adam, Coordinates, State, UpdateRule, Weights

# Rules that are good as they are drawn; `default` then is its hand rule.
TEACHERS = ("adam", "default", "layered", "learnable_sgd")
VECTOR = 0.1  # what the gap of a vector counts beside that of a matrix
# A gap counts at most this much: a diverging pupil is the meta-loss's business.
CAP = 100.0


class Teacher(NamedTuple):
    """A rule to imitate, with its weights, and whether gaps are taken by tensor."""

    rule: UpdateRule
    weights: Weights
    per_tensor: bool = False


@dataclass(frozen=True)
class Imitation:
    """An auxiliary loss that pulls the rule's steps to a teacher's, less and less.

    Attributes:
        weight: its factor at the first outer step; 0 does without.
        steps: outer steps over which it falls to zero, linearly.
        teacher: one of `TEACHERS`, with its config.
        learned: folder of a learned teacher's weights, relative to the recipe; it then takes the
            place of `teacher`.
        odd: imitate the odd part of a learned `l2l`, (step(g) - step(-g)) / 2.
        per_tensor: the gap is a mean of those of the tensors, in place of that of the whole step.
    """

    weight: float = 0.0
    steps: int = 1000
    teacher: UpdateRule = field(default_factory=Adam)
    learned: str = ""
    odd: bool = False
    per_tensor: bool = False

    def __post_init__(self) -> None:
        if self.weight < 0 or self.steps < 1:
            raise ValueError(f"weight >= 0 and steps >= 1 expected: {self}")
        if self.teacher.name not in TEACHERS:
            raise ValueError(f"teacher must be one of {TEACHERS} but is {self.teacher.name!r}")
        if self.odd and not self.learned:
            raise ValueError("odd needs a teacher that is learned: name its folder as `learned`")

    def strength(self, outer_step: int) -> float:
        """The factor at an outer step, from 0."""
        return self.weight * max(0.0, 1 - outer_step / self.steps)

    def drawn_teacher(self) -> Teacher:
        """The hand-written one."""
        return as_drawn(self.teacher)._replace(per_tensor=self.per_tensor)

    def teacher_of(self, rule: UpdateRule, weights: Weights) -> Teacher:
        """The learned teacher, or its odd part where that is asked.

        Raises:
            ValueError: the odd part is wanted of a rule that is no `l2l`.
        """
        if not self.odd:
            return Teacher(rule, weights, self.per_tensor)
        if type(rule) is not L2L:
            raise ValueError(f"imitation.odd is for a teacher of rule l2l, not {rule.name}")
        return Teacher(*rule.odd_part(weights), self.per_tensor)


def as_drawn(rule: UpdateRule) -> Teacher:
    """One of `TEACHERS`."""
    return Teacher(rule, rule.init_weights(torch.Generator()))


class Lesson:
    """The teacher beside one window of a worker's runs.

    Args:
        teacher: whom to imitate.
        runs: whose window it is.
        carry: where the window starts.
        state: the teacher's, as the window before left it; anew at the start of an episode.
    """

    def __init__(
        self, teacher: Teacher, runs: Runs, carry: Carry, state: State | None = None
    ) -> None:
        self.teacher = teacher.rule
        self._weights = {key: value.to(carry.theta) for key, value in teacher.weights.items()}
        self._layout = Layout(self.teacher, runs.start(), len(runs.lead))
        self._groups: tuple[int, ...] = (self._layout.coordinates,)
        counts = carry.theta.new_ones(1)
        if teacher.per_tensor:
            self._groups = self._layout.sizes
            matrices = [len(shape) > 1 for shape in self._layout.shapes]
            counts = carry.theta.new_tensor([1.0 if matrix else VECTOR for matrix in matrices])
        self._shares = counts / counts.sum()
        if state is None or carry.step == 0:
            state = initial_state(self.teacher, carry.theta, self._layout)
        self.state: State = state

    @torch.no_grad()
    def target(self, carry: Carry, total_steps: int | None = None) -> Tensor:
        """The teacher's step from here, `(*lead, N)`; to be called at every step of the window."""
        clock = make_clock(carry.step + 1, total_steps, self._layout, carry.loss)
        coords = Coordinates(carry.grad, carry.theta)
        step, self.state = apply_rule(
            self.teacher, self._weights, self._layout, coords, self.state, clock
        )
        return step

    def gap(self, steps: Tensor, targets: Tensor) -> Tensor:
        """Of steps `(..., N)` to targets of the same shape, `(...)`; see the module."""
        pairs = zip(steps.split(self._groups, -1), targets.split(self._groups, -1), strict=True)
        return torch.stack([gap(*pair) for pair in pairs], dim=-1) @ self._shares

    def gap_gradient(self, steps: Tensor, targets: Tensor) -> Tensor:
        """Its gradient with respect to the steps, `(..., N)`."""
        parts = zip(targets.split(self._groups, -1), self._shares, strict=True)
        scales = [(share / _square(x)).unsqueeze(-1).expand_as(x) for x, share in parts]
        return 2 * (steps - targets) * torch.cat(scales, dim=-1)


def gap(steps: Tensor, targets: Tensor) -> Tensor:
    """Squared distance relative to the target's square, `(..., N)` twice -> `(...)`."""
    return (steps - targets).square().sum(-1) / _square(targets)


def _square(targets: Tensor) -> Tensor:
    # A teacher stands still only where all gradients are zero; then there is nothing to imitate.
    square = targets.square().sum(-1)
    return torch.where(square > 0, square, torch.full_like(square, torch.inf))
