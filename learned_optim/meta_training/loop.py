"""Runs a `MetaTrainer` to the end: progress, logs, checkpoints, signals."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from learned_optim.meta_training import checkpoint, parallel
from learned_optim.meta_training.outer_loop import Contribution, MetaTrainer

# Scalars that add up over workers and processes; of the others the mean is logged.
COUNTS = ("non_finite", "clipped", "throughput")
# Signals closer than this are one: a terminal and a launcher may both pass on what was sent once.
ONE_SIGNAL = 3.0  # seconds


class Log(Protocol):
    """Where scalars go; `torch.utils.tensorboard.SummaryWriter` is one."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Record a scalar."""
        ...


def train(trainer: MetaTrainer, folder: Path, log: Log, *, progress: bool = True) -> None:
    """Run to the recipe's last step, validating, logging and checkpointing on the way.

    A checkpoint is written to `folder/checkpoint.pt` every `checkpoint_minutes`, after the last
    step, and on SIGINT or SIGTERM, always between two steps: a step that was cut short is made
    again, from the same state. A second signal, `ONE_SIGNAL` later, does not wait for that: it
    acts as it would without us.

    Raises:
        KeyboardInterrupt: after the checkpoint that a signal asked for, or at a second SIGINT.
    """
    from tqdm import tqdm

    recipe = trainer.recipe
    bar = tqdm(
        total=recipe.outer.steps,
        initial=trainer.step_count,
        desc=recipe.name,
        disable=not progress,
        mininterval=2.0,
    )
    pace = Pace(trainer, recipe.checkpoint_minutes)
    with _interrupts() as signals, bar:
        if not trainer.history:
            _log_validation(trainer.validate(), log)
        interrupted = False
        while trainer.step_count < recipe.outer.steps and not interrupted:
            contributions = trainer.step()
            _log_step(trainer, contributions, log, pace.tick(contributions))
            if trainer.step_count % recipe.validation.every == 0:
                row = trainer.validate()
                _log_validation(row, log)
                bar.set_postfix(validation=f"{row['score']:.4g}", best=f"{trainer.best_score:.4g}")
            bar.update()
            interrupted = parallel.any_of(bool(signals))
            if parallel.any_of(pace.checkpoint_is_due()):
                save(trainer, folder)
                pace.saved()
    save(trainer, folder)
    if interrupted:
        raise KeyboardInterrupt(
            f"stopped by a signal at step {trainer.step_count}; --resume goes on"
        )


def save(trainer: MetaTrainer, folder: Path) -> None:
    """Checkpoint: all processes gather, the first writes."""
    state = trainer.state_dict()
    if parallel.rank() == 0:
        checkpoint.save(folder / "checkpoint.pt", state)


class Pace:
    """Keeps time: of the run, of the checkpoints, of the throughput."""

    def __init__(self, trainer: MetaTrainer, checkpoint_minutes: float) -> None:
        self._trainer, self._between = trainer, 60 * checkpoint_minutes
        self._last = self._saved_at = time.monotonic()

    def tick(self, contributions: list[Contribution]) -> float:
        """Account for the step just made; inner coordinate-steps a second of this process."""
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        self._trainer.seconds += elapsed
        made = sum(contribution.estimate.coordinate_steps for contribution in contributions)
        return made / max(elapsed, 1e-9)

    def checkpoint_is_due(self) -> bool:
        """Whether the interval is over."""
        return time.monotonic() - self._saved_at > self._between

    def saved(self) -> None:
        """Start the next interval."""
        self._saved_at = time.monotonic()


@contextlib.contextmanager
def _interrupts() -> Iterator[list[float]]:
    """When signals came, in place of their default action, which a second one has again."""
    came: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def note(number: int, frame: object) -> None:
        came.append(time.monotonic())
        if came[-1] - came[0] > ONE_SIGNAL:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    caught: list[int] = [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, note) for number in caught}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_step(
    trainer: MetaTrainer, contributions: list[Contribution], log: Log, throughput: float
) -> None:
    """One scalar a family, over the workers of all processes: means, and sums of counts."""
    step = trainer.step_count
    mine = [{"throughput/coordinate_steps_per_second": throughput}]
    for label, estimate, norm in contributions:
        values = {"meta_loss": estimate.meta_loss, "grad_norm": norm, **estimate.stats}
        values["non_finite"] = float(estimate.non_finite)
        mine.append({f"{key}/{label}": value for key, value in values.items()})
    found: dict[str, list[float]] = {}
    for row in itertools.chain(*parallel.gather(mine)):
        for key, value in row.items():
            found.setdefault(key, []).append(value)
    for key, values in found.items():
        counted = key.split("/")[0] in COUNTS
        log.add_scalar(key, sum(values) if counted else sum(values) / len(values), step)
    for key, value in trainer.last.items():
        log.add_scalar(f"outer/{key}", value, step)


def _log_validation(row: dict[str, float], log: Log) -> None:
    step = int(row["step"])
    for key, value in row.items():
        if key not in ("step", "seconds"):
            log.add_scalar(f"validation/{key}", value, step)
