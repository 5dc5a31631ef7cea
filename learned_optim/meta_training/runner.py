"""From a recipe file to a folder with weights, metrics, curves and a model card."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from learned_optim import files
from learned_optim.meta_training import checkpoint, lock, parallel
from learned_optim.meta_training.checkpoint import CheckpointError
from learned_optim.meta_training.loop import Log, train
from learned_optim.meta_training.model_card import render
from learned_optim.meta_training.outer_loop import MetaTrainer
from learned_optim.meta_training.picture import draw
from learned_optim.meta_training.recipe import RecipeError
from learned_optim.meta_training.recipe_file import read_recipe
from learned_optim.meta_training.truncation import moved
from learned_optim.reporting import finite
from learned_optim.weights import LoadedRule, in_memory, load_folder, save_folder

# What `run` raises for what it was given; the message says all.
REFUSALS = (RecipeError, CheckpointError, parallel.DeviceUnavailable)


def run(
    recipe: str | Path,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    device: str = "cpu",
) -> LoadedRule:
    """Meta-train as the recipe says; the folder then holds the rule of the best validation.

    Args:
        recipe: path of the TOML file.
        output: folder of the run, `runs/<name>` by default: `checkpoint.pt` and TensorBoard's
            events on the way; `model.safetensors`, `config.json`, `recipe.toml`, `metrics.json`,
            `curves.png` and a model card at the end.
        resume: go on from the checkpoint in `output`, bit for bit, instead of starting.
        progress: show a progress bar.
        device: where to compute, as torch names it; checkpoints and weights move between devices.

    Returns:
        The rule that was written.

    Raises:
        RecipeError: for a recipe that can not be used.
        CheckpointError: if there is a checkpoint and `resume` is not given, if there is none and
            it is, if it is of another recipe, if one can not be read, if another run is at work
            in `output`, or if nothing can be written there; at the end, if no validation had a
            finite score, as then no rule is better than another.
        DeviceUnavailable: for a device that is not here.
        DataUnavailable: a data set cannot be had.
        WeightsUnavailable, WeightsError: what the recipe starts or learns from cannot be used.
        FunctionFailed: a model of the user's own (`own_model`) raised an error.
    """
    recipe, folder = Path(recipe), output_folder(recipe, output)
    path = folder / "checkpoint.pt"
    if resume and not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: start without --resume")
    trainer = MetaTrainer(read_recipe(recipe), parallel.place(device))
    if trainer.recipe.imitation.learned:
        trainer.learn_from(load_folder(recipe.parent / trainer.recipe.imitation.learned))
    if trainer.recipe.start:
        trainer.start_from(load_folder(recipe.parent / trainer.recipe.start).weights)
    with lock.held(path):
        _begin(trainer, path, resume=resume)
        with _log(folder, trainer.step_count) as log:
            train(trainer, folder, log, progress=progress)
        return _finish(trainer, recipe, path)


def _begin(trainer: MetaTrainer, path: Path, *, resume: bool) -> None:
    """From the checkpoint `path`, or from nothing if there is none."""
    if not resume:
        if path.exists():
            raise CheckpointError(
                f"{path} exists: pass --resume to go on with it, or another --output to start "
                "afresh"
            )
        return
    state = checkpoint.load(path)
    try:
        trainer.load_state_dict(state)
    except (KeyError, TypeError) as error:
        raise checkpoint.unusable(path, error) from error
    if parallel.rank() == 0:
        checkpoint.sweep(path)


def _finish(trainer: MetaTrainer, recipe: Path, path: Path) -> LoadedRule:
    """Export the best rule to the folder of the checkpoint `path`, if this process is the first."""
    if trainer.best_step < 0:
        raise CheckpointError(
            f"no validation had a finite score, so {path} holds no best rule and none is written: "
            "the losses were NaN, infinite or, for a score of logarithms, negative. Mend the model "
            "or the recipe, then start afresh with another --output"
        )
    if parallel.rank() != 0:
        best = moved(trainer.best_weights, "cpu")
        return in_memory(trainer.rule, best, name=trainer.recipe.name)
    with checkpoint.writing(path):
        return export(trainer, recipe, path.parent)


def output_folder(recipe: str | Path, output: str | Path | None) -> Path:
    """`output`, or `runs/<name of the recipe>`."""
    return Path(output) if output is not None else Path("runs") / read_recipe(recipe).name


@contextlib.contextmanager
def _log(folder: Path, step: int) -> Iterator[Log]:
    """TensorBoard's events in `folder`, of the first process alone."""
    from torch.utils.tensorboard.writer import SummaryWriter

    if parallel.rank() != 0:
        yield _Silent()
        return
    with SummaryWriter(str(folder), purge_step=step) as writer:
        yield writer


class _Silent:
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        pass


def export(trainer: MetaTrainer, recipe: Path, folder: Path) -> LoadedRule:
    """Write the best rule so far with its recipe, its metrics and, if there is none, its card."""
    best = moved(trainer.best_weights, "cpu")
    loaded = save_folder(folder, trainer.rule, best, name=trainer.recipe.name)
    if recipe.resolve() != (folder / "recipe.toml").resolve():
        files.write(folder / "recipe.toml", recipe.read_bytes())
    metrics = {
        "validation": {
            "score": trainer.best_score,
            "outer_step": trainer.best_step,
            "history": [{k: finite(v) for k, v in row.items()} for row in trainer.history],
        },
        "outer_steps": trainer.step_count,
        "hours": trainer.seconds / 3600,
    }
    text = json.dumps(metrics, indent=1, allow_nan=False)
    files.write(folder / "metrics.json", (text + "\n").encode())
    files.write(folder / "curves.png", draw(trainer.history, trainer.recipe.name))
    card = folder / "README.md"
    # A card that is there may hold limits and figures of benchmarks, which nobody here knows.
    if not card.exists():
        text = render(trainer.recipe.name, trainer.rule, "recipe.toml", metrics)
        files.write(card, text.encode())
    return loaded
