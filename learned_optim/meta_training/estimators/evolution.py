"""Evolution strategies: finite differences of the meta-loss along random directions, no graph.

Three estimators that differ only in when the perturbation is drawn:

- `es`: anew for every estimate, which runs the whole episode. Unbiased for the smoothed meta-loss;
  one estimate an episode.
- `pes`: anew for every window; the difference is multiplied by the sum of all perturbations of the
  episode so far. Unbiased over the episode; variance grows with the number of windows.
  Vicol, Metz, Sohl-Dickstein, "Unbiased gradient estimation in unrolled computation graphs with
  persistent evolution strategies", ICML 2021, https://arxiv.org/abs/2112.13835
- `nres`: once an episode. Unbiased over the episode, without an accumulator; less variance than PES
  in a window to whose loss earlier windows contribute in different directions.
  Li, Harrison, Sohl-Dickstein, Smith, Metz, "Variance-reduced gradient estimation via noise-reuse
  in online evolution strategies", NeurIPS 2023, https://arxiv.org/abs/2304.12180

"Unbiased" is for fixed meta-parameters, with respect to the meta-loss smoothed by the Gaussian.
All use antithetic pairs with common random numbers: the two members of a pair share start, data
and minibatches, so that the difference shows the perturbation alone.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from learned_optim.meta_training.estimators.base import (
    Estimate,
    GradientEstimator,
    check_only,
    only_those,
    told_horizon,
)
from learned_optim.meta_training.imitation import CAP
from learned_optim.meta_training.meta_loss import MetaLoss
from learned_optim.meta_training.seeding import generator
from learned_optim.meta_training.truncation import Worker
from learned_optim.meta_training.unroll import advance
from learned_optim.rules import UpdateRule, Weights

PAIR = 2


@dataclass(frozen=True)
class Evolution(GradientEstimator):
    """What the three share: one antithetic pair for each of the worker's runs.

    Args:
        unroll: inner steps of a window (`es` runs the whole episode whatever it says).
        sigma: standard deviation of the perturbation of each meta-parameter, before a constraint
            (`Outer.odd`) takes part of it away.
        loss_cap: an inner loss counts at most this many times the size of the run's first loss
            (without its sign); NaN and infinity count as that, and are reported. A pair whose
            first loss or meta-loss is not finite counts for nothing, and is reported.
        difference_clip: largest difference of the meta-losses of a pair; 0 does not clip.
        late: a window that ends at fraction x of the episode counts x^late, so that the end of
            training matters more than its beginning.
        late_told: `late` in the episodes whose length the rule is told, where all that counts is
            the end; the same by default.
        tell_horizon: probability that the rule is told the length of the episode (drawn once an
            episode, so that one set of weights learns to do with and without).
        only: beginnings of the names of the meta-parameters that are perturbed, and so trained;
            all of them if empty. The error of an estimate grows with their number, so a rule's few
            constants are best trained before its networks.
    """

    unroll: int = 40
    sigma: float = 0.03
    loss_cap: float = 10.0
    difference_clip: float = 0.0
    late: float = 0.0
    late_told: float | None = None
    tell_horizon: float = 0.0
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "only", tuple(self.only))
        if self.unroll < 1 or self.sigma <= 0 or self.loss_cap <= 1:
            raise ValueError(f"unroll >= 1, sigma > 0 and loss_cap > 1 expected but got {self}")
        if self.difference_clip < 0 or min(self._lates) < 0 or not 0 <= self.tell_horizon <= 1:
            raise ValueError(
                f"difference_clip >= 0, late >= 0, tell_horizon in [0, 1] expected but got {self}"
            )

    def check(self, rule: UpdateRule) -> None:
        """See `GradientEstimator`."""
        check_only(self.only, rule)

    @abstractmethod
    def _directions(self, worker: Worker, weights: Weights, start: int) -> tuple[Weights, Weights]:
        """`(R, *shape)` each: the perturbation, and the direction that the slope multiplies."""

    def _length(self, worker: Worker, start: int) -> int:
        return min(self.unroll, worker.stop_at - start)

    @torch.no_grad()
    def estimate(
        self, rule: UpdateRule, weights: Weights, worker: Worker, meta_loss: MetaLoss
    ) -> Estimate:
        """See `GradientEstimator`."""
        start = worker.current(rule, perturbations=PAIR).step
        noise, factor = map(worker.allowed, self._directions(worker, weights, start))
        losses, gaps = self._run(
            rule, self._perturb(weights, noise), worker, self._length(worker, start)
        )
        capped, broken = self._cap(losses, worker)
        values = meta_loss(capped / worker.unit(capped)) * self._window_weight(worker)
        objective = values + worker.pull * gaps
        difference = objective[:, 0] - objective[:, 1]
        comparable = difference.isfinite()
        difference = torch.where(comparable, difference, 0.0)
        clipped = self._clip(difference)
        stats = {
            "last_loss": float(capped[-1].mean()),
            "clipped": float((clipped != difference).sum()),
            "difference": float(difference.abs().mean()),
        }
        slope = clipped / (2 * self.sigma * worker.n_runs)
        return Estimate(
            grads={
                key: torch.tensordot(slope.to(value.dtype), value, dims=1)
                for key, value in factor.items()
            },
            meta_loss=float(values.mean()),
            inner_steps=losses.numel(),
            coordinate_steps=losses.numel() * worker.layout.coordinates,
            non_finite=int((broken.any(0) | ~comparable.unsqueeze(1)).sum()),
            stats=stats | ({"imitation": float(gaps.mean())} if worker.pull else {}),
        )

    def _perturb(self, weights: Weights, noise: Weights) -> Weights:
        """`(R, 2, *shape)`: each run's pair."""
        return {
            key: torch.stack((value + self.sigma * noise[key], value - self.sigma * noise[key]), 1)
            for key, value in weights.items()
        }

    def _run(
        self, rule: UpdateRule, weights: Weights, worker: Worker, length: int
    ) -> tuple[Tensor, Tensor]:
        """Advance the worker; the losses, `(T, R, 2)`, and the mean gaps to a teacher, `(R, 2)`."""
        told = told_horizon(worker, self.tell_horizon)
        carry, losses = worker.current(rule, perturbations=PAIR), []
        if carry.step == 0:
            worker.extra["first_loss"] = carry.loss
        lesson, gaps = worker.lesson(), torch.zeros_like(carry.loss)
        for done in range(length):
            before = carry
            # The worker's own carry stays as it is: a checkpoint may hold it.
            carry = advance(
                rule, weights, worker.runs, worker.layout, carry, told, consume=done > 0
            )
            losses.append(carry.loss)
            if lesson is not None:
                found = lesson.gap(carry.theta - before.theta, lesson.target(before, told))
                gaps += torch.where(found < CAP, found, CAP) / length  # NaN counts as the cap
        worker.carry = carry
        worker.taught(lesson)
        return torch.stack(losses), gaps

    def _cap(self, losses: Tensor, worker: Worker) -> tuple[Tensor, Tensor]:
        limit = self.loss_cap * worker.extra["first_loss"].abs()
        broken = ~losses.isfinite()
        return torch.where(broken, limit, torch.minimum(losses, limit)), broken

    def _clip(self, difference: Tensor) -> Tensor:
        limit = self.difference_clip
        return difference.clamp(-limit, limit) if limit else difference

    def _window_weight(self, worker: Worker) -> float:
        step = worker.carry.step if worker.carry is not None else 0
        untold, told = self._lates
        known = told_horizon(worker, self.tell_horizon)
        return (step / worker.total_steps) ** (untold if known is None else told)

    @property
    def _lates(self) -> tuple[float, float]:
        """The exponent where the length is not told, and where it is."""
        return self.late, self.late if self.late_told is None else self.late_told

    def _draw(self, weights: Weights, runs: int, *path: int | str) -> Weights:
        """Standard normal, `(runs, *shape)`, from the stream of `path`; zero where not `only`."""
        rng = generator("perturbation", *path)
        noise = {
            key: torch.randn((runs, *value.shape), generator=rng).to(value)
            for key, value in weights.items()
        }
        return only_those(noise, self.only)
