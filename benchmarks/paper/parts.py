"""Comparisons that take hours: every run goes to disk when it is done, and is not run again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.baselines import BASELINES, Sweep
from benchmarks.learned import Learned
from benchmarks.paper.comparison import ranked
from benchmarks.results import provenance
from benchmarks.runs import Problem, Stepper, run
from benchmarks.statistics import curve
from benchmarks.tuning import Grid, choose
from learned_optim.tasks import Task
from learned_optim.weights import LoadedRule


@dataclass(frozen=True)
class Contest:
    """Tuned baselines and learned rules on one task, run by run.

    A run on its own, because convolutions that are batched over networks are slower.

    Attributes:
        name: key in results and of the files.
        title: for people.
        task: the optimizee.
        grid: of learning rates.
        steps: length of the runs.
        tail: the loss at the end is the mean over so many last steps: more than one where a single
            minibatch is noisy.
        test_runs: that are reported.
        validation_runs: that the rates are chosen on.
        margin: see `choose`; where a rate that none of few validation runs diverges at is too much
            for some test run.
    """

    name: str
    title: str
    task: Task
    grid: Grid
    steps: int
    tail: int
    test_runs: int
    validation_runs: int
    margin: int = 0

    def _losses(
        self, runs: int, stream: str, make_stepper: Callable[[], Stepper], who: str, work: Path
    ) -> Tensor:
        """`(runs, K, steps + 1)`; what is in `work` is read."""
        problem = Problem(self.task, runs, self.steps, stream, 1)
        key = hashlib.sha256(f"{self.task!r} {self.steps} {who}".encode()).hexdigest()[:12]
        found = []
        for row in range(runs):
            label = f"{self.name}-{stream}-{who.partition(' ')[0]}-{row}"
            file = work / f"{label}-{key}.safetensors"
            if not file.is_file():
                started = time.process_time()
                losses = run(problem, make_stepper, progress=label, rows=[row]).losses
                seconds = torch.tensor(time.process_time() - started)
                work.mkdir(parents=True, exist_ok=True)
                save_file({"losses": losses.contiguous(), "seconds": seconds}, file)
            found.append(load_file(file)["losses"])
        return torch.cat(found)

    def tune(self, work: Path) -> dict[str, dict[str, Any]]:
        """Every baseline's rate: its name -> what `choose` returns."""
        chosen = {}
        for name in BASELINES:
            rates = self.grid.rates(name)
            sweep = {name: rates}
            losses = self._losses(
                self.validation_runs,
                "validation",
                lambda sweep=sweep: Sweep(sweep),
                f"{name} {rates}",
                work,
            )
            start, end = losses[..., : self.tail], losses[..., -self.tail :]
            chosen[name] = choose(rates, start.mean(-1), end.mean(-1), self.margin)
        return chosen

    def compare(self, rules: Mapping[str, LoadedRule], work: Path) -> dict[str, Any]:
        """As `benchmarks.paper.comparison.compare` has it, ready for JSON.

        Args:
            rules: entry -> rule.
            work: folder of what is finished.
        """
        chosen = self.tune(work)
        rates = {name: chosen[name]["rate"] for name in BASELINES}
        makers: dict[str, tuple[str, Callable[[], Stepper]]] = {
            name: (f"{name} {rate}", lambda sweep={name: [rate]}: Sweep(sweep))
            for name, rate in rates.items()
        }
        for entry, rule in rules.items():
            makers[entry] = (f"{entry} {rule.sha256} {rule.rule!r}", lambda r=rule: Learned(r))
        losses = {
            entry: self._losses(self.test_runs, "test", make, who, work)[:, 0]
            for entry, (who, make) in makers.items()
        }
        metrics = {
            entry: {"final": found[:, -self.tail :].mean(1), "sum": found[:, 1:].sum(1)}
            for entry, found in losses.items()
        }
        return {
            "title": self.title,
            "steps": self.steps,
            "test_runs": self.test_runs,
            "validation_runs": self.validation_runs,
            "entries": {
                entry: {"rate": rates.get(entry), "paper": None, "curve": curve(found)}
                for entry, found in losses.items()
            },
            "metrics": {metric: ranked(metrics, metric) for metric in ("final", "sum")},
            "tuning": chosen,
        }


def seconds_of(work: Path) -> float:
    """CPU seconds of everything that is in a folder of finished runs."""
    return sum(float(load_file(file)["seconds"]) for file in sorted(work.glob("*.safetensors")))


def content_of(
    path: Path,
    name: str,
    result: Mapping[str, Any],
    order: Iterable[str],
    rules: Mapping[str, LoadedRule],
    work: Path,
) -> dict[str, Any]:
    """What `path` shall hold when a case is finished: that, and the others that it holds already.

    Others that were measured with other weights are dropped.
    """
    hashes = {entry: rule.sha256 for entry, rule in rules.items()}
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    cases = saved["cases"] if saved.get("weights_sha256") == hashes else {}
    cases = {**cases, name: result}
    content = {
        "weights_sha256": hashes,
        "cases": {known: cases[known] for known in order if known in cases},
        **provenance(),
    }
    return content | {"cpu_seconds": round(seconds_of(work), 1)}
