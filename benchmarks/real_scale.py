"""A step towards real scale: a language model of five million parameters, on a CPU.

    python -m benchmarks.real_scale                   all runs; goes on where it was stopped
    python -m benchmarks.real_scale --only default    one of them
    python -m benchmarks.real_scale --quick           a tiny model, a few steps, written nowhere

A causal transformer on the characters of Shakespeare, from the held-out list: `default` without and
with `total_steps`, tested within `LearnedOptimizer.averaged` too; AdamW with a cosine at four rates
and with a warm-up at four; Muon on hidden matrices, AdamW on the rest, with warm-up and cosine, at
four; Prodigy (extra `benchmarks`) as it installs and with the cosine that its authors advise.
Everyone sees the same start and the same minibatches. All sixteen runs take over two hours of one
core: a step of `default` or Muon costs about half as much as the gradient, one of AdamW next to
nothing. Checkpoints lie in `--folder`; results go to results/real_scale.json and
results/real_scale.png, after every run that is complete.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.general.steppers import PACKAGED
from benchmarks.muon import MuonAndAdamW
from benchmarks.results import RESULTS, provenance, write_json
from learned_optim.hub import load_rule
from learned_optim.meta_training.seeding import generator
from learned_optim.optimizer import LearnedOptimizer
from learned_optim.tasks import Params, TransformerLanguageModel
from learned_optim.tasks.base import Task

FINAL = 0.05  # of the steps: the mean over them is the final training loss
CHECKPOINT_EVERY = 25  # steps
TEST_BATCHES = 32
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
WARM_RATES, WARM = (
    (3e-4, 1e-3, 3e-3, 1e-2),
    0.1,
)  # with a linear warm-up over this share of the steps
MUON_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SEED = 0


@dataclass(frozen=True)
class Size:
    """Of the model and its training.

    Attributes:
        depth: blocks.
        width: of the residual stream.
        heads: of the attention.
        length: characters in a window.
        batch_size: windows in a minibatch.
        steps: updates.
        dataset: of characters.
    """

    depth: int = 6
    width: int = 256
    heads: int = 8
    length: int = 128
    batch_size: int = 8
    steps: int = 800
    dataset: str = "tinyshakespeare"

    def task(self) -> Task:
        """The optimizee."""
        shape = {key: value for key, value in asdict(self).items() if key != "steps"}
        return TransformerLanguageModel(**shape).sample(generator())


QUICK = Size(depth=1, width=32, heads=2, length=16, batch_size=4, steps=12)

Make = Callable[[Params], torch.optim.Optimizer]


@dataclass(frozen=True)
class Contender:
    """An optimizer and its schedule.

    Attributes:
        label: for people.
        make: takes the tensors, by name.
        cosine: whether the rate falls to zero as a cosine.
        warmup: steps over which it rises first.
    """

    label: str
    make: Make
    cosine: bool = False
    warmup: int = 0

    def schedule(
        self, optimizer: torch.optim.Optimizer, steps: int
    ) -> torch.optim.lr_scheduler.LRScheduler | None:
        """Of the rate; None where it stays."""
        if not self.cosine:
            return None
        if not self.warmup:
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

        def factor(step: int) -> float:
            fall = (1 + math.cos(math.pi * step / steps)) / 2
            return min(1.0, (step + 1) / self.warmup) * fall

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _nameless(make: Callable[..., torch.optim.Optimizer], **options: Any) -> Make:  # noqa: ANN401
    """Of an optimizer that asks for a list."""
    return lambda params: make(list(params.values()), **options)


def contenders(rule: str, steps: int) -> dict[str, Contender]:
    """By the names that the results give them."""
    loaded = load_rule(rule)
    found = {
        "default": Contender(loaded.name, _nameless(LearnedOptimizer, rule=loaded)),
        "default_told": Contender(
            f"{loaded.name}, total_steps told",
            _nameless(LearnedOptimizer, rule=loaded, total_steps=steps),
        ),
    }
    for rate in RATES:
        make = _nameless(torch.optim.AdamW, lr=rate)
        found[f"adamw_{rate:g}"] = Contender(f"AdamW + cosine, {rate:g}", make, cosine=True)
    warm = max(1, round(WARM * steps))
    for rate in WARM_RATES:
        label, make = f"AdamW + warm-up + cosine, {rate:g}", _nameless(torch.optim.AdamW, lr=rate)
        found[f"adamw_warm_{rate:g}"] = Contender(label, make, cosine=True, warmup=warm)
    for rate in MUON_RATES:
        label, make = f"Muon + warm-up + cosine, {rate:g}", partial(MuonAndAdamW, lr=rate)
        found[f"muon_warm_{rate:g}"] = Contender(label, make, cosine=True, warmup=warm)
    prodigy = _nameless(PACKAGED["prodigy"].make)
    found["prodigy"] = Contender("Prodigy", prodigy)
    found["prodigy_cosine"] = Contender("Prodigy + cosine", prodigy, cosine=True)
    return found


class Training:
    """One run that can be stopped and continued.

    Args:
        contender: what trains it.
        size: of the model.
        path: of the checkpoint.
    """

    def __init__(self, contender: Contender, size: Size, path: Path) -> None:
        self.size, self._path, self._task = size, path, size.task()
        self._source = generator("real scale", SEED)
        start, _ = self._task.init(self._source)
        self.params: Params = {key: value.requires_grad_() for key, value in start.items()}
        self._optimizer = contender.make(self.params)
        self._schedule = contender.schedule(self._optimizer, size.steps)
        self.losses: list[float] = []
        self.seconds = {"gradient": 0.0, "step": 0.0}
        if path.is_file():
            self._load()

    def run(self) -> None:
        """To the end, a checkpoint every `CHECKPOINT_EVERY` steps."""
        bar = tqdm(total=self.size.steps, initial=len(self.losses), desc=self._path.stem)
        while len(self.losses) < self.size.steps:
            self._advance()
            bar.update()
            bar.set_postfix(loss=f"{self.losses[-1]:.3f}")
            if len(self.losses) % CHECKPOINT_EVERY == 0 or len(self.losses) == self.size.steps:
                self._save()
        bar.close()

    def _advance(self) -> None:
        begin = time.process_time()
        loss = self._task.loss(self.params, self._task.batch(self._source))
        self._optimizer.zero_grad()
        loss.backward()
        middle = time.process_time()
        self._optimizer.step()
        if self._schedule is not None:
            self._schedule.step()
        self.losses.append(loss.item())
        self.seconds["gradient"] += middle - begin
        self.seconds["step"] += time.process_time() - middle

    def averaged(self) -> AbstractContextManager[None] | None:
        """Where a learned rule has its parameters at the mean."""
        optimizer = self._optimizer
        return optimizer.averaged() if isinstance(optimizer, LearnedOptimizer) else None

    @torch.no_grad()
    def test_loss(self) -> float:
        """Mean over fixed minibatches of the test split."""
        source = generator("real scale", "test")
        batches = [self._task.batch(source, "test") for _ in range(TEST_BATCHES)]
        losses = [self._task.loss(self.params, batch) for batch in batches]
        return float(torch.stack(losses).mean())

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".part")
        torch.save(
            {
                "size": asdict(self.size),
                "params": {key: value.detach() for key, value in self.params.items()},
                "optimizer": self._optimizer.state_dict(),
                "schedule": None if self._schedule is None else self._schedule.state_dict(),
                "source": self._source.get_state(),
                "losses": self.losses,
                "seconds": self.seconds,
            },
            temporary,
        )
        temporary.replace(self._path)

    def _load(self) -> None:
        saved = torch.load(self._path, weights_only=True)
        if saved["size"] != asdict(self.size):
            raise ValueError(
                f"{self._path} is of another size, {saved['size']}; delete it or name another "
                "--folder"
            )
        with torch.no_grad():
            for key, value in self.params.items():
                value.copy_(saved["params"][key])
        self._optimizer.load_state_dict(saved["optimizer"])
        if self._schedule is not None:
            self._schedule.load_state_dict(saved["schedule"])
        self._source.set_state(saved["source"])
        self.losses, self.seconds = saved["losses"], saved["seconds"]


def facts(contender: Contender, training: Training) -> dict[str, Any]:
    """Of a complete run, for the results."""
    tail = training.losses[-max(1, round(FINAL * training.size.steps)) :]
    at_mean = {}
    if (averaged := training.averaged()) is not None:
        with averaged:
            at_mean = {"test_loss_averaged": training.test_loss()}
    return {
        "label": contender.label,
        "final_loss": sum(tail) / len(tail),
        "test_loss": training.test_loss(),
        **at_mean,
        "cpu_seconds": {key: round(value, 1) for key, value in training.seconds.items()},
        "losses": [float(f"{loss:.4g}") for loss in training.losses],
    }


def _kept(path: Path | None, size: Size, rule_sha256: str) -> dict[str, Any]:
    """The runs of a results file that are what they would be now; the rule's with its weights."""
    saved = json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else {}
    if saved.get("size") != asdict(size) or saved.get("seed") != SEED:
        return {}
    same = saved["rule_sha256"] == rule_sha256
    return {key: run for key, run in saved["runs"].items() if same or not key.startswith("default")}


def measure(size: Size, options: argparse.Namespace, path: Path | None) -> dict[str, Any]:
    """All runs that are asked for, and what earlier calls have completed.

    Those not made yet, or not asked for, are taken from the file where their checkpoints are gone.
    """
    rule_sha256 = load_rule(options.rule).sha256
    found = _kept(path, size, rule_sha256)
    everyone = contenders(options.rule, size.steps)
    content: dict[str, Any] = {}
    for key, contender in everyone.items():
        checkpoint = options.folder / f"{key}.pt"
        if options.only and key not in options.only and not checkpoint.is_file():
            continue
        training = Training(contender, size, checkpoint)
        if not options.only or key in options.only:
            training.run()
        if len(training.losses) < size.steps:
            continue
        found[key] = facts(contender, training)
        runs = {known: found[known] for known in everyone if known in found}
        parameters = sum(value.numel() for value in training.params.values())
        content = {"size": asdict(size), "parameters": parameters, "seed": SEED, "runs": runs}
        content |= {"rule_sha256": rule_sha256} | provenance()
        # Of the whole file, whichever run was the last to be made.
        content["command"] = "python -m benchmarks.real_scale"
        if path is not None:
            write_json(path, content)
    return content


def table(content: dict[str, Any]) -> str:
    """Fixed-width text."""
    lines = [f"{'':32}{'training':>10}{'test':>10}{'s, gradient':>13}{'s, step':>10}"]
    for run in content.get("runs", {}).values():
        seconds = run["cpu_seconds"]
        lines.append(
            f"{run['label']:32}{run['final_loss']:10.4f}{run['test_loss']:10.4f}"
            f"{seconds['gradient']:13.0f}{seconds['step']:10.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="A language model of five million parameters.")
    parser.add_argument("--rule", default="default", help="a bundled name or a folder")
    parser.add_argument(
        "--only", nargs="+", metavar="RUN", help="default, default_told, adamw_..., muon_..."
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/real_scale"), help="checkpoints")
    parser.add_argument("--quick", action="store_true", help="tiny, and written nowhere")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = None if options.quick else RESULTS / "real_scale.json"
    content = measure(QUICK if options.quick else Size(), options, path)
    print(table(content))
    if path is not None and content:
        from benchmarks.real_scale_figure import draw

        draw(content, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
