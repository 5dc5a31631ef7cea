"""The losses of a tuned Adam on drawn optimizees: the unit that their losses are measured in.

Losses of different families, and of one run early and late, differ by orders of magnitude; divided
by what a tuned Adam has at the same step of the same optimizee, they are near 1 wherever the rule
is as good. Such a curve costs a run of Adam at each rate of a grid (side by side, by vmap), so
tasks are drawn from a finite pool and the curves are kept: in memory, and in the user's cache
folder (`adam_curves` in `datasets.cache_folder()`). The cache is only for speed. A file that can
not be written is done without; one that is torn, or another's, is computed again.

What "tuned" means: at step t, the rate with the best trailing mean at t over all runs. That is what
Adam reaches when it is tuned for t steps, and the curve of a long run begins with that of a short
one, so that one file serves all horizons.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from learned_optim import files
from learned_optim.meta_training.baseline import RATES, adam_curves
from learned_optim.tasks.base import Task, TaskFamily
from learned_optim.tasks.datasets import cache_folder

# Part of every key. Raise it when the definition below or the loss of any task changes.
VERSION = 1
GRID = RATES[::2]  # two rates a decade: half the cost, and the best is missed by 1.8 times at most
TRAIL = 8  # the mean over the last eighth of the steps so far, as minibatch losses are noisy
CHOICES = ("none", "start", "adam")


@dataclass(frozen=True)
class Normalise:
    """How training measures the losses of a run (validation has a score of its own).

    Attributes:
        by: "none": as they are. "start": in units of the run's first loss, which costs nothing.
            "adam": in units of a tuned Adam's loss at the same step.
        pool: tasks that a family's workers draw from with "adam"; each is drawn with its runs, and
            meets fresh minibatches each time.
        floor: the unit is at least this fraction of the run's first loss, so that a problem that
            Adam solves to rounding error does not count without bound.
    """

    by: str = "none"
    pool: int = 64
    floor: float = 1e-3

    def __post_init__(self) -> None:
        if self.by not in CHOICES:
            raise ValueError(f"by must be one of {CHOICES} but is {self.by!r}")
        if self.pool < 1 or not 0 < self.floor <= 1:
            raise ValueError(f"pool >= 1 and floor in (0, 1] expected: {self}")


class Yardstick:
    """Curves of a tuned Adam, computed once.

    Args:
        config: the recipe's.
        device: where they are computed and wanted.
        folder: of the files; the user's cache folder by default.
    """

    def __init__(
        self, config: Normalise, device: torch.device | str = "cpu", folder: Path | None = None
    ) -> None:
        self.config, self.device = config, torch.device(device)
        self.folder = folder or cache_folder() / "adam_curves"
        self.computed = 0
        self._known: dict[str, Tensor] = {}

    def units(
        self,
        family: TaskFamily,
        task: Task,
        seeds: Sequence[int],
        path: Sequence[int | str],
        steps: int,
    ) -> Tensor:
        """The unit of each run at each step, `(steps + 1, R)`.

        Args:
            family: the task's, with its config.
            task: drawn from it.
            seeds: of its runs.
            path: what the draw was a function of, besides the family; with the seeds it names the
                optimizees.
            steps: the least length.
        """
        key = _key(family, seeds, path)
        curve = self._known.get(key)
        if curve is None or len(curve) <= steps:
            curve = read(self._file(key), key)
        if curve is None or len(curve) <= steps:
            # The next power of two: an episode that is longer next time seldom costs a new run.
            curve = tuned_curve(task, seeds, 1 << (steps - 1).bit_length(), self.device).cpu()
            self.computed += 1
            write(self._file(key), key, curve)
        self._known[key] = curve
        return floored(curve[: steps + 1], self.config.floor).to(self.device)

    def _file(self, key: str) -> Path:
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return self.folder / f"{name}.safetensors"


def floored(curve: Tensor, floor: float) -> Tensor:
    """The curve, at least `floor` times its beginning; where Adam diverged, its beginning."""
    first = curve[0].abs().clamp_min(torch.finfo(curve.dtype).tiny)
    return torch.where(curve.isfinite(), curve, first).maximum(floor * first)


def tuned_curve(
    task: Task, seeds: Sequence[int], steps: int, device: torch.device | str = "cpu"
) -> Tensor:
    """What Adam reaches, tuned for each number of steps, `(steps + 1, R)`; see the module."""
    smooth = trailing_mean(adam_curves(task, seeds, steps, GRID, device))
    broken = smooth.new_full((), math.inf)
    smooth = torch.where(smooth.isfinite(), smooth, broken)
    best = smooth.clamp_min(1e-30).log().mean(1).argmin(-1)
    return smooth.gather(2, best.view(-1, 1, 1).expand(-1, smooth.shape[1], 1)).squeeze(2)


def trailing_mean(curve: Tensor) -> Tensor:
    """At t the mean over steps t - t // TRAIL ... t, `(steps + 1, ...)`."""
    # In float64: differences of long sums. What diverged stays so from there on.
    sums = torch.cat((curve.new_zeros((1, *curve.shape[1:])), curve)).double().cumsum(0)
    end = torch.arange(len(curve), device=curve.device) + 1
    count = (end - 1) // TRAIL + 1
    shape = (-1, *[1] * (curve.dim() - 1))
    return ((sums[end] - sums[end - count]) / count.view(shape)).to(curve.dtype)


def _key(family: TaskFamily, seeds: Sequence[int], path: Sequence[int | str]) -> str:
    facts = {
        "version": VERSION,
        "family": f"{family.name} {family!r}",
        "path": list(path),
        "seeds": list(seeds),
        "rates": list(GRID),
        "trail": TRAIL,
    }
    return json.dumps(facts, sort_keys=True)


def _digest(curve: Tensor) -> str:
    return hashlib.blake2b(curve.contiguous().numpy().tobytes(), digest_size=16).hexdigest()


def read(path: Path, key: str) -> Tensor | None:
    """The curve in a file of `write`; None when there is none, or it is damaged, or another's."""
    try:
        with safe_open(path, framework="pt") as file:
            curve, told = file.get_tensor("curve"), file.metadata() or {}
    except (OSError, SafetensorError, KeyError):
        return None
    genuine = curve.dim() == 2 and told.get("key") == key and told.get("digest") == _digest(curve)
    return curve if genuine else None


def write(path: Path, key: str, curve: Tensor) -> None:
    """In one piece, or not at all when the disk is full."""
    content = safetensors.torch.save(
        {"curve": curve.contiguous()}, {"key": key, "digest": _digest(curve)}
    )
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, content)
