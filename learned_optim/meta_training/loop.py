"""Runs a `MetaTrainer` to the end: progress, logs, checkpoints, signals."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from learned_optim.meta_training import checkpoint, parallel
from learned_optim.meta_training.estimators import Estimate
from learned_optim.meta_training.outer_loop import MetaTrainer
from learned_optim.meta_training.recipe import TaskEntry


class Log(Protocol):
    """Where scalars go; `torch.utils.tensorboard.SummaryWriter` is one."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Record a scalar."""
        ...


def train(trainer: MetaTrainer, folder: Path, log: Log, *, progress: bool = True) -> None:
    """Run to the recipe's last step, validating, logging and checkpointing on the way.

    A checkpoint is written to `folder/checkpoint.pt` every `checkpoint_minutes`, after the last
    step, and on SIGINT or SIGTERM, always between two steps: a step that was cut short is made
    again, from the same state.

    Raises:
        KeyboardInterrupt: after the checkpoint that a signal asked for.
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
            trainer.validate()
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

    def tick(self, contributions: list[tuple[TaskEntry, Estimate]]) -> float:
        """Account for the step just made; inner coordinate-steps a second of this process."""
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        self._trainer.seconds += elapsed
        return sum(estimate.coordinate_steps for _, estimate in contributions) / max(elapsed, 1e-9)

    def checkpoint_is_due(self) -> bool:
        """Whether the interval is over."""
        return time.monotonic() - self._saved_at > self._between

    def saved(self) -> None:
        """Start the next interval."""
        self._saved_at = time.monotonic()


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The signals that came, in place of their default action."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {
        number: signal.signal(number, lambda received, _frame: came.append(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_step(
    trainer: MetaTrainer,
    contributions: list[tuple[TaskEntry, Estimate]],
    log: Log,
    throughput: float,
) -> None:
    step = trainer.step_count
    log.add_scalar("throughput/coordinate_steps_per_second", throughput, step)
    for entry, estimate in contributions:
        log.add_scalar(f"meta_loss/{entry.label}", estimate.meta_loss, step)
        log.add_scalar(f"non_finite/{entry.label}", estimate.non_finite, step)
        for key, value in estimate.stats.items():
            log.add_scalar(f"{key}/{entry.label}", value, step)


def _log_validation(row: dict[str, float], log: Log) -> None:
    step = int(row["step"])
    for key, value in row.items():
        if key not in ("step", "seconds"):
            log.add_scalar(f"validation/{key}", value, step)
