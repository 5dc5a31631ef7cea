"""A learned rule on many runs at once, through the real `LearnedOptimizer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from learned_optim.optimizer import LearnedOptimizer
from learned_optim.rules import ByLayer
from learned_optim.tasks import Params
from learned_optim.weights import LoadedRule, in_memory, load_folder

PRETRAINED = Path(__file__).parent.parent / "pretrained"


class Learned:
    """`LearnedOptimizer` as a `benchmarks.runs.Stepper`.

    The tensors of each run are parameters of their own, views of the stacked ones. One optimizer
    holds them all: it treats parameters separately (a run whose gradient is not finite sits out
    alone), so this equals one optimizer a run, and its backend joins small tensors.

    Args:
        loaded: the rule and its weights.
    """

    copies = 1

    def __init__(self, loaded: LoadedRule) -> None:
        self._loaded = loaded
        self._optimizer: LearnedOptimizer | None = None
        self._tensors: list[Tensor] = []

    def step(self, params: Params, grads: Params) -> None:
        """Update `params` `(R, 1, ...)` in place; they must be the same tensors at every step."""
        if self._optimizer is None:
            self._tensors = _runs(params)
            self._optimizer = LearnedOptimizer(_groups(self._loaded, self._tensors))
        for tensor, grad in zip(self._tensors, _runs(grads), strict=True):
            tensor.grad = grad
        self._optimizer.step()


def _groups(loaded: LoadedRule, tensors: list[Tensor]) -> list[dict[str, Any]]:
    """One param group, or one for each part of a rule of two: the same steps, by the kernels."""
    rule = loaded.rule
    if not isinstance(rule, ByLayer):
        return [{"params": tensors, "rule": loaded}]
    parts = {
        part: in_memory(rule.part, weights, name=f"{loaded.name}-{part}")
        for part, weights in rule.split(loaded.weights).items()
    }
    members = {part: [x for x in tensors if rule.part_of(tuple(x.shape)) == part] for part in parts}
    return [{"params": members[part], "rule": parts[part]} for part in parts if members[part]]


def _runs(tensors: Params) -> list[Tensor]:
    return [run for value in tensors.values() for run in value[:, 0].unbind()]


def find_weights(name: str) -> list[Path]:
    """`pretrained/<name>` and the other meta-seeds in its folder `seeds`, those that exist."""
    folder = PRETRAINED / name
    folders = [folder, *sorted((folder / "seeds").glob("*"))]
    return [path for path in folders if (path / "config.json").is_file()]


def load_rules(folders: list[Path]) -> dict[str, LoadedRule]:
    """Folders -> rules by the key that the results give them: `learned`, `learned-1`, ...

    Raises:
        learned_optim.weights.WeightsUnavailable: if a folder is missing.
        learned_optim.weights.WeightsError: if its files must not be used.
    """
    keys = ["learned", *(f"learned-{index}" for index in range(1, len(folders)))]
    return {key: load_folder(path) for key, path in zip(keys, folders, strict=False)}
