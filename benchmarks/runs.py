"""Many runs of one task side by side: the loop that every benchmark of the paper shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from learned_optim.meta_training.seeding import derive_seed
from learned_optim.meta_training.unroll import Runs
from learned_optim.tasks import Batch, Params, Task

Measure = Callable[[Params], dict[str, Tensor]]


class Stepper(Protocol):
    """What moves the parameters: K copies of each run, one for each setting."""

    @property
    def copies(self) -> int:
        """K."""
        ...

    def step(self, params: Params, grads: Params) -> None:
        """Update `params` `(R, K, ...)` in place."""
        ...


@dataclass(frozen=True)
class Problem:
    """A fixed set of runs.

    Run r draws its start and its minibatches from a seed derived from `stream` and r, so every
    optimizer sees the same ones; another stream (validation, test) has other runs, and
    meta-training derives its own in another way.

    Attributes:
        task: what is optimised.
        runs: number of runs.
        steps: length of each.
        stream: name of the set.
        block: runs stepped together; small where one run alone fills the cache.
    """

    task: Task
    runs: int
    steps: int
    stream: str
    block: int


@dataclass
class Trajectory:
    """What was recorded.

    Attributes:
        losses: `(runs, K, steps + 1)`: the loss at theta_0, ..., theta_steps, each on the
            minibatch that the next step's gradient would come from.
        measured: step -> name -> `(runs, K)`, what `measure` returned.
    """

    losses: Tensor
    measured: dict[int, dict[str, Tensor]] = field(default_factory=dict)


def run(
    problem: Problem,
    make_stepper: Callable[[], Stepper],
    *,
    measure: Measure | None = None,
    measure_at: tuple[int, ...] = (),
    progress: str = "",
    rows: Sequence[int] | None = None,
) -> Trajectory:
    """Optimise every run with every setting.

    Args:
        problem: the runs.
        make_stepper: called once for each block of runs.
        measure: `params (R, K, ...)` -> named `(R, K)` tensors, evaluated at some steps.
        measure_at: those steps.
        progress: label of the progress bar; none if empty.
        rows: only these runs; all of them by default.
    """
    parts = []
    rows = range(problem.runs) if rows is None else rows
    blocks = range(0, len(rows), problem.block)
    with tqdm(total=len(blocks) * problem.steps, desc=progress, disable=not progress) as bar:
        for first in blocks:
            block = rows[first : first + problem.block]
            losses, measured = [], {}
            for step, loss, params in _steps(problem, block, make_stepper()):
                losses.append(loss)
                if measure is not None and step in measure_at:
                    measured[step] = measure(params)
                bar.update(step > 0)
            parts.append(Trajectory(torch.stack(losses, dim=-1), measured))
    return _join(parts)


def _steps(
    problem: Problem, rows: Sequence[int], stepper: Stepper
) -> Iterator[tuple[int, Tensor, Params]]:
    """Yield `(step, losses (R, K), params)` for step 0, 1, ..., `problem.steps`."""
    seeds = [derive_seed("benchmark", problem.stream, row) for row in rows]
    runs = Runs(problem.task, seeds, perturbations=stepper.copies)
    # Cloned, as the steps are in place.
    params = {key: value.clone() for key, value in runs.start().items()}
    for step in range(problem.steps + 1):
        grads, loss = runs.evaluate(params, runs.next_batch())
        yield step, loss, params
        if step < problem.steps:
            stepper.step(params, grads)


def _join(parts: list[Trajectory]) -> Trajectory:
    measured: dict[int, dict[str, Tensor]] = {}
    for step, values in parts[0].measured.items():
        measured[step] = {
            name: torch.cat([part.measured[step][name] for part in parts]) for name in values
        }
    return Trajectory(torch.cat([part.losses for part in parts]), measured)


def dataset_loss(task: Task, batches: Mapping[str, Batch], chunk: int = 10_000) -> Measure:
    """A `measure`: the mean loss over each of some large batches, taken in chunks.

    Args:
        task: whose loss is a mean over the rows of the batch.
        batches: name -> batch.
        chunk: rows at a time.
    """
    evaluate = torch.func.vmap(torch.func.vmap(task.loss, in_dims=(0, None)), in_dims=(0, None))

    def mean_loss(params: Params, batch: Batch) -> Tensor:
        rows = len(next(iter(batch.values())))
        total: Tensor | float = 0.0
        for start in range(0, rows, chunk):
            part = {key: value[start : start + chunk] for key, value in batch.items()}
            total = total + evaluate(params, part) * (len(next(iter(part.values()))) / rows)
        return torch.as_tensor(total)

    return lambda params: {name: mean_loss(params, batch) for name, batch in batches.items()}
