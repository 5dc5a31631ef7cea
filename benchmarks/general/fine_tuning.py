"""Problems of fine-tuning: a network that has learned one thing goes on with another.

Each network is trained here, by AdamW with warm-up and cosine, so that no weights need be had from
elsewhere; then its data change (`VIEWS`), and what is compared is how optimizers go on from there.
Its head may be drawn anew, where the labels are new ones, or all of it be frozen but for
low-rank adapters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.general.grids import may_be_hidden
from learned_optim.tasks import nets
from learned_optim.tasks.base import Batch, Params, Split, Task, TaskFamily
from learned_optim.tasks.text import windows

RATE, DECAY, WARMUP = 3e-3, 0.01, 0.1  # of the training before: peak rate, decay, share of steps
EARLY = 0.6  # of a text: what is read before, the rest is what is read after
# CIFAR-10's labels as vehicles, 0, and animals, 1.
ANIMAL = (0, 0, 1, 1, 1, 1, 1, 1, 0, 0)
ALPHA = 2.0  # factor on the adapters' product: "alpha" over the rank

View = Callable[[Any, torch.Generator, Split], Batch]


def _changed(change: Callable[[Batch], Batch]) -> View:
    """What is other about a minibatch of images."""

    def view(task: Task, generator: torch.Generator, split: Split) -> Batch:
        batch = task.batch(generator, split)
        return batch | change(batch)

    return view


def _part(*, early: bool) -> View:
    """The beginning of a text, or the rest."""

    def view(task: Any, generator: torch.Generator, split: Split) -> Batch:  # noqa: ANN401
        tokens: Tensor = task.corpus.tokens(split)
        cut = int(EARLY * len(tokens))
        part = tokens[:cut] if early else tokens[cut:]
        return windows(part, generator, task.batch_size, task.length)

    return view


VIEWS: dict[str, View] = {
    "whole": _changed(lambda batch: {}),
    "inverted": _changed(lambda batch: {"x": 1 - batch["x"]}),  # black for white
    "turned": _changed(lambda batch: {"x": batch["x"].rot90(1, (-2, -1))}),  # by a quarter
    "coarse": _changed(lambda batch: {"y": torch.tensor(ANIMAL)[batch["y"]]}),  # or vehicle
    "early": _part(early=True),
    "late": _part(early=False),
}


@dataclass(frozen=True)
class SeenTask(Task):
    """A task on other data of the same form.

    Attributes:
        task: the network and its loss.
        view: of its data, a key of `VIEWS`.
    """

    task: Task
    view: str

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """As the task's."""
        return self.task.init(generator)

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """The task's, as it is seen."""
        return VIEWS[self.view](self.task, generator, split)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """The task's."""
        return self.task.loss(params, batch)


@functools.lru_cache(maxsize=32)
@torch.enable_grad()
def pretrained(task: SeenTask, steps: int) -> Params:
    """Parameters after `steps` of AdamW from a fixed seed; the same tensors at every call."""
    generator = torch.Generator().manual_seed(0)
    start, constants = task.init(generator)
    params = {key: value.requires_grad_() for key, value in start.items()}
    optimizer = torch.optim.AdamW(params.values(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=steps, pct_start=WARMUP, cycle_momentum=False
    )
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(params, constants | task.batch(generator)).backward()
        optimizer.step()
        schedule.step()
    return {key: value.detach() for key, value in params.items()}


@dataclass(frozen=True)
class FineTuningTask(Task):
    """All parameters go on from where they ended.

    Attributes:
        before: what the network was trained on.
        after: what it is trained on now.
        steps: of the training before.
        fresh: how the names of parameters begin that are drawn anew in every run; "" for none.
    """

    before: SeenTask
    after: SeenTask
    steps: int
    fresh: str

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """The same in every run, but for what is fresh."""
        drawn, constants = self.after.init(generator)
        learned = pretrained(self.before, self.steps)
        anew = {key for key in drawn if self.fresh and key.startswith(self.fresh)}
        params = {key: drawn[key] if key in anew else learned[key].clone() for key in drawn}
        return params, constants

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """Of what it is trained on now."""
        return self.after.batch(generator, split)

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Of what it is trained on now."""
        return self.after.loss(params, batch)


@dataclass(frozen=True)
class AdapterTask(FineTuningTask):
    """What was learned stays; hidden matrices get the product of two thin ones added.

    `weight + ALPHA * up @ down`, `<name>.down` `(rank, in)` at first N(0, 1 / in), `<name>.up`
    `(out, rank)` zero (Hu et al., "LoRA: low-rank adaptation of large language models", 2021,
    section 4.1).
    """

    rank: int

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """The adapters; `fresh` has no effect."""
        _, constants = self.after.init(generator)
        params: Params = {}
        for name, weight in pretrained(self.before, self.steps).items():
            if may_be_hidden(name, weight.shape):
                rows, columns = weight.shape
                params[f"{name}.down"] = nets.normal(generator, (self.rank, columns), columns**-0.5)
                params[f"{name}.up"] = torch.zeros(rows, self.rank)
        return params, constants

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """With the adapters' products added."""
        whole = dict(pretrained(self.before, self.steps))
        for name in {key.rpartition(".")[0] for key in params}:
            update = params[f"{name}.up"] @ params[f"{name}.down"]
            whole[name] = whole[name] + ALPHA * update
        return self.after.loss(whole, batch)


@dataclass(frozen=True)
class FineTuning(TaskFamily):
    """Networks of a family, trained before.

    Args:
        family: of the networks.
        before: key of `VIEWS`, the data of the training before.
        after: likewise, of the training that is compared.
        steps: of the training before.
        fresh: see `FineTuningTask`.
        rank: of adapters; 0 for none.

    Raises:
        ValueError: for data that `VIEWS` does not have.
    """

    name: ClassVar[str] = "fine_tuning"

    family: TaskFamily
    before: str
    after: str
    steps: int = 1500
    fresh: str = ""
    rank: int = 0

    def __post_init__(self) -> None:
        for view in (self.before, self.after):
            if view not in VIEWS:
                raise ValueError(f"data must be among {sorted(VIEWS)} but are {view!r}")

    def sample(self, generator: torch.Generator) -> FineTuningTask:
        """Draw the network's structure."""
        task = self.family.sample(generator)
        tasks = SeenTask(task, self.before), SeenTask(task, self.after)
        if self.rank:
            return AdapterTask(*tasks, self.steps, self.fresh, self.rank)
        return FineTuningTask(*tasks, self.steps, self.fresh)
