"""The outer loop: meta-gradients in, better meta-parameters out, killable at any moment.

Here is the state of a run and its single step. `loop` repeats that step with logs and checkpoints,
`start` and `imitation` say what it may begin from and learn from, `constraint` where it stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learned_optim.meta_training import checkpoint, identity, parallel
from learned_optim.meta_training.constraint import free, odd_part
from learned_optim.meta_training.curriculum import Stages
from learned_optim.meta_training.estimators import Estimate
from learned_optim.meta_training.imitation import Teacher
from learned_optim.meta_training.recipe import Outer, Recipe, RecipeError, TaskEntry
from learned_optim.meta_training.seeding import generator
from learned_optim.meta_training.start import fitted
from learned_optim.meta_training.truncation import Worker, moved
from learned_optim.meta_training.validation import Result, Validator
from learned_optim.meta_training.yardstick import Yardstick
from learned_optim.rules import Weights
from learned_optim.weights import LoadedRule, digest


def learning_rate(outer: Outer, step: int) -> float:
    """The rate of outer step `step` (from 0): linear warm-up, then a cosine to `final_lr`."""
    warmup = min(1.0, (step + 1) / outer.warmup) if outer.warmup else 1.0
    cosine = (1 + math.cos(math.pi * step / outer.steps)) / 2
    return outer.lr * warmup * (outer.final_lr + (1 - outer.final_lr) * cosine)


class Contribution(NamedTuple):
    """What one worker gave to an outer step: its family's label, its estimate, its norm."""

    label: str
    estimate: Estimate
    grad_norm: float


class MetaTrainer:
    """The state of a meta-training run and its single step.

    Everything that the next step depends on is in `state_dict`: the meta-parameters, the outer
    optimizer, the workers with their unrolls and generators, the curriculum, the best validation
    so far. With it goes the recipe that made it (`identity`), as under another it is worth nothing.

    Under torchrun every process holds a trainer; each advances its own workers only, and all make
    the same update (`parallel`).

    Args:
        recipe: what to do.
        device: where all tensors live but those of `state_dict`, which are on the CPU.
    """

    def __init__(self, recipe: Recipe, device: torch.device | str = "cpu") -> None:
        self.recipe, self.device = recipe, torch.device(device)
        self.rule = recipe.rule
        self.allowed = odd_part(self.rule) if recipe.outer.odd else free
        drawn = self.rule.init_weights(generator("weights", recipe.seed))
        self.weights: Weights = {
            key: value.to(self.device).requires_grad_()
            for key, value in self.allowed(drawn).items()
        }
        self.optimizer = getattr(torch.optim, recipe.outer.optimizer)(
            list(self.weights.values()), lr=recipe.outer.lr
        )
        self.entries = [entry for entry in recipe.tasks for _ in range(entry.workers)]
        self.labels = [
            label
            for label, entry in zip(_labels(recipe.tasks), recipe.tasks, strict=True)
            for _ in range(entry.workers)
        ]
        yardstick = Yardstick(recipe.normalise, self.device)
        self.workers = [
            Worker(
                entry.family,
                entry.runs,
                recipe.horizon,
                recipe.seed,
                index,
                stagger=recipe.stagger,
                device=self.device,
                yardstick=yardstick if recipe.normalise.by == "adam" else None,
                by_start=recipe.normalise.by == "start",
            )
            for index, entry in enumerate(self.entries)
        ]
        for worker in self.workers:
            worker.allowed = self.allowed
        if not recipe.imitation.learned:
            self._teach(recipe.imitation.drawn_teacher())
        self.validator = Validator(recipe.tasks, recipe.validation, self.device)
        self.stages = Stages(recipe.curriculum)
        self._grow()
        self.step_count = 0
        self.seconds = 0.0
        self._start = self._learned = ""
        self.averaged = self.snapshot()
        self.best_score = math.inf
        self.best_step = -1
        self.best_weights = self.snapshot()
        self.history: list[dict[str, float]] = []
        self.last: dict[str, float] = {}  # of the last step, for the log

    def snapshot(self) -> Weights:
        """A detached copy of the meta-parameters."""
        return {key: value.detach().clone() for key, value in self.weights.items()}

    def start_from(self, weights: Weights) -> None:
        """Begin at these meta-parameters instead of those drawn.

        Those that a rule which lacks a level does not have stay as drawn: so `default` is trained
        without its coordinate level first. See `start.fitted`, which says what is refused.
        """
        with torch.no_grad():
            for key, value in fitted(self.rule, weights, self.allowed).items():
                self.weights[key].copy_(value)
        self._start = digest(weights)
        self.averaged, self.best_weights = self.snapshot(), self.snapshot()

    def learn_from(self, loaded: LoadedRule) -> None:
        """Imitate this rule, the recipe's `imitation.learned`, or its odd part if that is asked.

        Raises:
            ValueError: the odd part is wanted of a rule that is no `l2l`.
        """
        self._teach(self.recipe.imitation.teacher_of(loaded.rule, dict(loaded.weights)))
        self._learned = loaded.sha256

    def _teach(self, teacher: Teacher) -> None:
        for worker in self.workers:
            worker.teacher = teacher

    def _identity(self) -> dict[str, Any]:
        return identity.identity(self.recipe, self._start, self._learned)

    def _grow(self) -> None:
        for worker in self.workers:
            worker.growth = self.stages.factor

    def step(self) -> list[Contribution]:
        """One update of the meta-parameters; what each worker of this process gave to it."""
        if self.recipe.imitation.learned and self.workers[0].teacher is None:
            raise RecipeError(
                f"imitation.learned = {self.recipe.imitation.learned!r}: call learn_from first"
            )
        detached = {key: value.detach() for key, value in self.weights.items()}
        meta_loss = self.recipe.meta_loss
        mine = parallel.mine(len(self.workers))
        for worker in self.workers:
            worker.pull = self.recipe.imitation.strength(self.step_count)
        estimates = [
            self.recipe.estimator.estimate(self.rule, detached, self.workers[index], meta_loss)
            for index in mine
        ]
        gradient = dict(zip(self.weights, self._gradient(estimates), strict=True))
        for key, grad in self.allowed(gradient).items():
            self.weights[key].grad = grad
        limit = self.recipe.outer.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.weights.values()), limit))
        rate = learning_rate(self.recipe.outer, self.step_count)
        finite = math.isfinite(norm)
        self.last = {"grad_norm": norm, "clipped": float(norm > limit), "lr": rate}
        self.last["skipped"] = float(not finite)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if finite:  # one bad step would leave NaN in the meta-parameters for good
            self.optimizer.step()
        self._average()
        self.step_count += 1
        return [
            Contribution(self.labels[index], estimate, _norm(estimate))
            for index, estimate in zip(mine, estimates, strict=True)
        ]

    def _gradient(self, estimates: list[Estimate]) -> list[Tensor]:
        """The mean over all workers of all processes, weighted by family."""
        total = sum(entry.weight for entry in self.entries)
        limit = self.recipe.outer.clip_each or math.inf
        sums = [torch.zeros_like(value) for value in self.weights.values()]
        for index, estimate in zip(parallel.mine(len(self.workers)), estimates, strict=True):
            share = self.entries[index].weight / total
            share *= min(1.0, limit / max(_norm(estimate), 1e-30))
            for place, key in enumerate(self.weights):
                sums[place] += share * estimate.grads[key]
        return parallel.add_up(sums)

    def _average(self) -> None:
        # min(): a running mean over the first steps, so that the start is forgotten soon.
        keep = min(self.recipe.outer.ema, (self.step_count + 1) / (self.step_count + 10))
        keep = keep if self.recipe.outer.ema else 0.0
        for key, value in self.weights.items():
            self.averaged[key] = torch.lerp(value.detach(), self.averaged[key], keep)

    def validate(self) -> dict[str, float]:
        """Score the (averaged) meta-parameters on the fixed optimizees; keep them if best.

        The curriculum takes note. The processes share the work.
        """
        cells = self.validator.cells()
        done = [
            self.validator.evaluate(self.rule, self.averaged, *cells[index])
            for index in parallel.mine(len(cells))
        ]
        results = parallel.interleave(done)
        score = self.validator.score(results)
        if score < self.best_score:
            self.best_score, self.best_step = score, self.step_count
            self.best_weights = {key: value.clone() for key, value in self.averaged.items()}
        self.stages.see(score)
        self._grow()
        self.history.append(self._row(score, results))
        return self.history[-1]

    def _row(self, score: float, results: list[Result]) -> dict[str, float]:
        row = {
            "step": float(self.step_count),
            "score": score,
            "seconds": self.seconds,
            "horizon_factor": self.stages.factor,
        }
        for result in results:
            name = f"{self.recipe.tasks[result.family].label}_{result.family}@{result.steps}"
            row[f"{name}/value"] = result.value
            row[f"{name}/final"] = float(result.curve[-1].mean())
            row[f"{name}/sum"] = float(result.curve[1:].sum(0).mean())
        return row

    def state_dict(self) -> dict[str, Any]:
        """Everything; see the class. Under torchrun all processes must call it together."""
        mine = [self.workers[index].state_dict() for index in parallel.mine(len(self.workers))]
        state = {
            "recipe": self._identity(),
            "weights": self.snapshot(),
            "averaged": self.averaged,
            "optimizer": self.optimizer.state_dict(),
            "workers": parallel.interleave(mine),
            "curriculum": self.stages.state_dict(),
            "step": self.step_count,
            "seconds": self.seconds,
            "best": {
                "score": self.best_score,
                "step": self.best_step,
                "weights": self.best_weights,
            },
            "history": self.history,
        }
        return moved(state, "cpu")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, by as many processes as there are now.

        A recipe that starts from weights, or has a learned teacher, is given them first.

        Raises:
            checkpoint.CheckpointError: if the checkpoint belongs to another recipe; see `identity`.
        """
        identity.check(state, self._identity(), self.recipe)
        shapes = {key: tuple(value.shape) for key, value in state["weights"].items()}
        if shapes != self.rule.weight_shapes() or len(state["workers"]) != len(self.workers):
            raise checkpoint.CheckpointError(
                "the checkpoint was made by a recipe with another rule or other tasks"
            )
        with torch.no_grad():
            for key, value in self.weights.items():
                value.copy_(state["weights"][key])
        self.averaged = moved(state["averaged"], self.device)
        self.optimizer.load_state_dict(state["optimizer"])
        for worker, saved in zip(self.workers, state["workers"], strict=True):
            worker.load_state_dict(saved, self.rule)
        self.stages.load_state_dict(state["curriculum"])
        self._grow()
        self.step_count, self.seconds = state["step"], state["seconds"]
        self.best_score, self.best_step = state["best"]["score"], state["best"]["step"]
        self.best_weights = moved(state["best"]["weights"], self.device)
        self.history = state["history"]


def _labels(tasks: Sequence[TaskEntry]) -> list[str]:
    """What the log calls each entry: its family, with its number where there are several."""
    names = [entry.label for entry in tasks]
    return [
        name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)
    ]


def _norm(estimate: Estimate) -> float:
    return math.hypot(*(float(grad.norm()) for grad in estimate.grads.values()))
