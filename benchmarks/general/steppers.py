"""Optimizers of any class as steppers: the learned rules, and those that come in packages."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from learned_optim.meta_training.layout import Layout
from learned_optim.meta_training.unroll import initial_state, make_clock
from learned_optim.optimizer import LearnedOptimizer
from learned_optim.rules import Coordinates, State
from learned_optim.tasks import Params
from learned_optim.weights import LoadedRule

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


class Stepper(Protocol):
    """What moves the parameters: K copies of each run, one for each setting."""

    copies: int

    def step(self, params: Params, grads: Params) -> None:
        """Update `params` `(R, K, ...)` in place; the same tensors at every call."""
        ...

    def show(self) -> None:
        """Put what a user would get in place of the parameters, where that is something else."""
        ...

    def hide(self) -> None:
        """Undo `show`."""
        ...


class Together:
    """Several steppers side by side on the same minibatches, in the order of their copies."""

    def __init__(self, steppers: Sequence[Stepper]) -> None:
        self._steppers = steppers
        self.copies = sum(stepper.copies for stepper in steppers)

    def step(self, params: Params, grads: Params) -> None:
        """See `Stepper`."""
        first = 0
        for stepper in self._steppers:
            part = slice(first, first + stepper.copies)
            stepper.step(_cut(params, part), _cut(grads, part))
            first = part.stop

    def show(self) -> None:
        """See `Stepper`."""
        for stepper in self._steppers:
            stepper.show()

    def hide(self) -> None:
        """See `Stepper`."""
        for stepper in self._steppers:
            stepper.hide()


class Instances:
    """Real optimizers, each on views of its own run's tensors.

    Args:
        makers: one for each copy; takes the tensors.
        joined: give all runs of a copy to one instance, for optimizers that treat tensors
            separately: the same numbers, fewer calls.
    """

    def __init__(self, makers: Sequence[MakeOptimizer], *, joined: bool = False) -> None:
        self._makers, self._joined = makers, joined
        self.copies = len(makers)
        self._optimizers: list[tuple[torch.optim.Optimizer, list[tuple[str, int, int]]]] = []
        self._tensors: dict[tuple[str, int, int], Tensor] = {}

    def _begin(self, params: Params) -> None:
        runs = len(next(iter(params.values())))
        for copy, make in enumerate(self._makers):
            groups: Iterable[range] = (
                [range(runs)] if self._joined else (range(row, row + 1) for row in range(runs))
            )
            for rows in groups:
                places = [(key, row, copy) for row in rows for key in params]
                tensors = [params[key][row, copy] for key, row, copy in places]
                self._tensors.update(zip(places, tensors, strict=True))
                self._optimizers.append((make(tensors), places))
        self.hide()

    def step(self, params: Params, grads: Params) -> None:
        """See `Stepper`."""
        if not self._optimizers:
            self._begin(params)
        for optimizer, places in self._optimizers:
            for key, row, copy in places:
                self._tensors[key, row, copy].grad = grads[key][row, copy]
            optimizer.step()

    def show(self) -> None:
        """Schedule-free optimizers train at one point and hand over another."""
        self._call("eval")

    def hide(self) -> None:
        """Back to the point at which they train."""
        self._call("train")

    def _call(self, method: str) -> None:
        for optimizer, _ in self._optimizers:
            getattr(optimizer, method, lambda: None)()


class AtMean(LearnedOptimizer):
    """Shown within `averaged`, by the two words of schedule-free optimizers."""

    def eval(self) -> None:
        """To the mean, if not there yet."""
        self._within = ExitStack()
        self._within.enter_context(self.averaged())

    def train(self) -> None:
        """Back to where it trains."""
        getattr(self, "_within", ExitStack()).close()


def learned(rules: Sequence[LoadedRule], steps: int) -> Instances:
    """`LearnedOptimizer` with each rule: without and with `total_steps`, and shown at the mean."""

    def makers(rule: LoadedRule) -> list[MakeOptimizer]:
        return [
            lambda tensors: LearnedOptimizer(tensors, rule=rule),
            lambda tensors: LearnedOptimizer(tensors, rule=rule, total_steps=steps),
            lambda tensors: AtMean(tensors, rule=rule),
        ]

    return Instances([make for rule in rules for make in makers(rule)], joined=True)


class Unrolled:
    """What `learned` does, by the rule's own functions: all tensors, runs and copies in one call.

    On small problems that is several times as fast. Equal but for rounding (the optimizer stores
    some state in halves), and but for gradients that are not finite, which sit out there and end
    the run here.

    Args:
        rules: of one config; each is run without and with `total_steps`, and once more without,
            shown at the mean.
        steps: that.

    Raises:
        ValueError: if their configs differ.
    """

    def __init__(self, rules: Sequence[LoadedRule], steps: int) -> None:
        rules = [loaded.lean() for loaded in rules]  # as the optimizer runs them
        if any(loaded.rule != rules[0].rule for loaded in rules):
            raise ValueError("rules side by side must have one config: run them one by one")
        self._rule = rules[0].rule
        self._settings = [(loaded, told) for loaded in rules for told in (None, steps, None)]
        self._at_mean = [copy for copy in range(len(self._settings)) if copy % 3 == 2]
        self._weights = {
            key: torch.stack([loaded.weights[key] for loaded, _ in self._settings])
            for key in rules[0].weights
        }
        self.copies = len(self._settings)
        self._layout: Layout | None = None
        self._state: State = {}
        self._step = 0
        self._params: Params = {}
        self._trained: Params = {}  # what `show` has put aside

    @torch.no_grad()
    def step(self, params: Params, grads: Params) -> None:
        """See `Stepper`."""
        self._step += 1
        self._params = params
        layout = self._layout or Layout(self._rule, params, 2)
        theta = layout.join(params)
        if self._layout is None:
            self._layout, self._state = layout, initial_state(self._rule, theta, layout)
        clock = make_clock(self._step, None, layout, theta)
        plain = layout.join(grads)
        grad, self._state, found = layout.see(self._rule, plain, self._state, clock)
        coords = Coordinates(grad, theta, plain=plain)
        of_tensors, of_coordinates = (
            {key: self._state[key] for key in self._rule.keys_per(per)}
            for per in ("tensor", "coordinate")
        )
        sums = layout.summarize(self._rule, coords, of_coordinates)
        signals, of_tensors = self._control(layout, sums, of_tensors)
        step, of_coordinates = self._rule.update(
            coords, of_coordinates, layout.spread(signals), self._weights
        )
        step, self._state = layout.settle(
            self._rule, step, signals, of_tensors | of_coordinates | found
        )
        for key, part in layout.split(step).items():
            params[key] += part

    def _control(self, layout: Layout, sums: Tensor, state: State) -> tuple[Tensor, State]:
        """Copy by copy, as only some of them know the horizon."""
        found = []
        for copy, (loaded, told) in enumerate(self._settings):
            ours = {key: value[:, copy] for key, value in state.items()}
            clock = make_clock(self._step, told, layout, sums)
            weights = loaded.weights
            found.append(self._rule.control(sums[:, copy], layout.facts, ours, clock, weights))
        signals = torch.stack([each for each, _ in found], dim=1)
        return signals, {key: torch.stack([own[key] for _, own in found], dim=1) for key in state}

    def show(self) -> None:
        """The third copy of each rule goes to the mean; the others are what a user gets."""
        if self._layout is None or self._rule.owing is None:
            return
        key, row = self._rule.owing
        owed = self._layout.split(self._state[key][..., row, :])
        self._trained = {name: value.clone() for name, value in self._params.items()}
        for copy in self._at_mean:
            loaded, told = self._settings[copy]
            way = 1 - loaded.rule.share(loaded.weights, told)
            for name, value in self._params.items():
                value[:, copy] -= way * owed[name][:, copy]

    def hide(self) -> None:
        """Back to where they train."""
        for name, value in self._trained.items():
            self._params[name].copy_(value)
        self._trained = {}


class Packaged(NamedTuple):
    """An optimizer of another package, as users install it: every option at its default.

    Attributes:
        label: for tables.
        package: its name where packages come from, and of the module.
        kind: the class.
    """

    label: str
    package: str
    kind: str

    def make(self, tensors: list[Tensor]) -> torch.optim.Optimizer:
        """The optimizer.

        Raises:
            ModuleNotFoundError: if the package is not there, saying how to get it.
        """
        try:
            module = importlib.import_module(self.package)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{self.label} comes with {self.package}, which cannot be imported. "
                "Install the extra: pip install 'learned-optim[benchmarks]'"
            ) from error
        return getattr(module, self.kind)(tensors)


PACKAGED: dict[str, Packaged] = {
    "prodigy": Packaged("Prodigy", "prodigyopt", "Prodigy"),
    "schedule_free": Packaged("Schedule-free AdamW", "schedulefree", "AdamWScheduleFree"),
}


def _cut(tensors: Params, part: slice) -> dict[str, Any]:
    return {key: value[:, part] for key, value in tensors.items()}
