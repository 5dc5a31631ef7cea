"""`LearnedOptimizer`: a learned update rule behind the torch.optim contract, and only that.

A step reads: `_collect` the parameters into batches; for each, `see_` matrices in their bases,
`survey` the gradients, `control` each tensor, `move` the coordinates. What happens in there is the
backend's and the rule's business. What options and gradients may be is in `options`, what a
checkpoint must be in `resume`, where the numbers of a distributed parameter lie in `shards`, what
can move together in `together`, who warns of broken gradients in `alarm`.

The class in the order of its life, under four headings: it is made, with its rules and groups
(`__init__` to `add_param_group`); it takes steps (`step`, `_move`), for which it lays out what
moves (`_collect` to `_weights`); it is looked at (`averaged`); it is copied, pickled and resumed
(`__getstate__` to `load_state_dict`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from learned_optim import resume, shards
from learned_optim.alarm import Alarm
from learned_optim.averages import Place, at_mean
from learned_optim.backends import (
    FUSED,
    Backend,
    Batch,
    Eager,
    Slot,
    autocast_off,
    capturing,
    choose,
    portions,
    see_,
)
from learned_optim.hub import load_rule
from learned_optim.options import check_dense, check_options, check_shape
from learned_optim.rules import UpdateRule, Weights, compute_dtype
from learned_optim.together import alike, apart, factor
from learned_optim.weights import LoadedRule

DEFAULT_RULE = "default"

Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
# A batch, the parameters as the user knows them, and what moves it.
Work: TypeAlias = tuple[Batch, list[Tensor], Backend]
RuleSource: TypeAlias = str | os.PathLike[str] | LoadedRule


class LearnedOptimizer(Optimizer):
    """Trains with a learned update rule; there is no learning rate to tune.

    For each coordinate `theta` with gradient `g`, one step is

        theta <- theta - lr * weight_decay * rule.decay_scale * theta
        theta <- theta + lr * rule(g, theta, state)

    where the rule's weights are fixed numbers from a file.

    A parameter whose gradient holds NaN or infinity sits the step out (parameter, state and step
    counter kept, one warning an optimizer), and a coordinate for which the rule itself gives no
    finite step stays where it is. On the CPU the warning comes at once. On other devices it comes
    a step or more late on CUDA and not at all elsewhere, because reading the verdict would make
    the host wait; within torch.compile there is none.

    Args:
        params: parameters, named parameters (torch 2.6 on), or groups; a group may have its own
            value of every option below, `rule` included.
        rule: a bundled name, a folder, a Hub id "user/repo@revision", or a loaded rule.
        lr: factor on the step, for schedulers; 1 is the rule's own step. A float or a
            tensor of one element.
        weight_decay: decoupled decay, scaled so that AdamW's usual values mean the same.
        total_steps: number of steps the training will take, for rules that can use it.
        maximize: climb instead of descend.
        fused: None chooses the fastest backend that supports the case, True demands a fused one,
            False takes torch's operations alone.

    Raises:
        ValueError: an option out of its range; the message names both.
        TypeError: `rule` is of a type that `load_rule` does not take.
        RuntimeError: `fused=True` where no fused backend supports the case; FSDP1's flattened
            parameters under a rule that looks at whole tensors; in `step`, a sparse gradient, or
            a parameter whose shape has changed.
        WeightsUnavailable: the rule cannot be had.
        WeightsError: the rule's files are not usable.

    Schedulers that cycle the momentum (`OneCycleLR`, `CyclicLR`) need `cycle_momentum=False`.

    Example:
        >>> import torch
        >>> from learned_optim import LearnedOptimizer
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = LearnedOptimizer(model.parameters())
        >>> model(torch.ones(8, 4)).square().mean().backward()
        >>> optimizer.step()
    """

    # -- made: its rules, its groups ---------------------------------------------------------------

    def __init__(
        self,
        params: Params,
        rule: RuleSource = DEFAULT_RULE,
        *,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        total_steps: int | None = None,
        maximize: bool = False,
        fused: bool | None = None,
    ) -> None:
        loaded = load_rule(rule).lean()
        self._rules: dict[tuple[str, str], LoadedRule] = {}
        self._remember(loaded)
        self._alarm = Alarm()
        self._looked_at = False
        self._drop_scratch()
        # The loaded rule, not its name, so that `type(self)(params, **self.defaults)` works, as
        # ZeroRedundancyOptimizer has it. Groups hold plain values only.
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "total_steps": total_steps,
            "maximize": maximize,
            "fused": fused,
            "rule": loaded,
        }
        super().__init__(params, defaults)

    def _drop_scratch(self) -> None:
        """Forget what can be made again: backends with their workspaces, and cast weights."""
        # All are here from the start: one added while tracing would cost a recompilation.
        self._backends: dict[type[Backend], Backend] = {kind: kind() for kind in (Eager, *FUSED)}
        self._cast: dict[tuple[tuple[str, str], torch.device, torch.dtype], Weights] = {}
        self._ages: dict[Tensor, int] = {}
        self._shapes: dict[int, tuple[list[int], list[tuple[int, ...]]]] = {}

    def _remember(self, loaded: LoadedRule) -> dict[str, str]:
        """File a rule; returns the entries by which a param group refers to it."""
        entries = resume.rule_entries(loaded)
        self._rules[entries["rule_sha256"], entries["rule_config"]] = loaded
        return entries

    def _rule_of(self, group: dict[str, Any]) -> LoadedRule:
        return self._rules[group["rule_sha256"], group["rule_config"]]

    def _asked_for(self, param_group: dict[str, Any]) -> LoadedRule:
        """The rule of a group to come, which may be another optimizer's group with its entries."""
        source = param_group.get("rule", self.defaults["rule"])
        key = (param_group.get("rule_sha256", ""), param_group.get("rule_config", ""))
        known = self._rules.get(key)
        if known is not None and param_group.get("rule", known.name) == known.name:
            return known
        loaded = load_rule(source).lean()
        if known is None and not isinstance(source, LoadedRule):
            resume.check_group(param_group, loaded)
        return loaded

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, as torch's; the group's `rule` and the other options are checked.

        Raises:
            ValueError: an option out of its range; a group of another optimizer whose rule is not
                what its name stands for here.
            RuntimeError: the group demands `fused` and no fused backend supports its parameters,
                or FSDP1 flattened them and the rule looks at whole tensors.
        """
        if isinstance(param_group, dict):
            # A copy: a caller's group that names a rule can then serve another optimizer too. So
            # can one whose parameters can be gone through but once, if it keeps them as a list.
            if isinstance(param_group.get("params"), Iterator):
                param_group["params"] = list(param_group["params"])
            param_group = dict(param_group)
            check_options({**self.defaults, **param_group})
            total = param_group.get("total_steps", self.defaults["total_steps"])
            # An integer of NumPy would keep torch.load from reading a checkpoint's plain values.
            param_group["total_steps"] = None if total is None else int(total)
            param_group.update(self._remember(self._asked_for(param_group)))
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            rule = self._rule_of(group).rule
            for param in group["params"]:
                choose(rule, param.device, param.dtype.to_real(), group["fused"])
                if shards.is_flattened(param) and not rule.coordinatewise:
                    raise RuntimeError(
                        f"rule {group['rule']!r} looks at whole tensors, which "
                        "FullyShardedDataParallel (FSDP1) joins and cuts. Use FSDP2, "
                        "torch.distributed.fsdp.fully_shard, or a rule of single coordinates"
                    )
        except RuntimeError:
            self.param_groups.pop()
            raise

    # -- a step: the whole of it, then what it lays out --------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Args:
            closure: computes the loss anew and its gradients, and returns the loss.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: a gradient is sparse, a parameter has changed its shape since its first
                step, or this is within `averaged`; nothing has changed then.
        """
        if self._looked_at:
            raise RuntimeError(
                "step() within averaged(): parameters are at a mean there that they leave again. "
                "Take steps outside of the block"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sharded, whole = [], []
        for work in self._collect():
            parts = any(slot.parts is not None for slot in work[0].slots)
            (sharded if parts else whole).append(work)
        # Shards together, for one collective in all; others one by one, for little memory.
        self._move(sharded)
        for work in whole:
            self._move([work])
        self._alarm.sound()
        return loss

    def _move(self, works: list[Work]) -> None:
        """All stages of the step for some batches."""
        surveys = []
        for batch, _, backend in works:
            with autocast_off(batch.device):
                see_(batch, backend.see_(batch))
                surveys.append(backend.survey(batch))
        shards.add_up_(
            (shards.cut_of(params[i]), rows[i])
            for (batch, params, _), rows in zip(works, surveys, strict=True)
            for i, slot in enumerate(batch.slots)
            if slot.parts is not None
        )
        for (batch, params, backend), rows in zip(works, surveys, strict=True):
            finite = self._alarm.report(rows[:, 0], params)
            with autocast_off(batch.device):
                backend.move(batch, backend.control(batch, rows, finite), finite)
            for param, slot in zip(params, batch.slots, strict=True):
                if slot.param is not param and shards.is_sharded(param):
                    torch.autograd.graph.increment_version(param)

    def _collect(self) -> list[Work]:
        """What this step moves: by group, device and dtype."""
        check_dense(self.param_groups)
        found = []
        for group in self.param_groups:
            self._init_group(group)
            for params in alike(group["params"]).values():
                for some in apart(params):
                    found += self._batches(group, some)
        return found

    def _batches(self, group: dict[str, Any], params: list[Tensor]) -> Iterator[Work]:
        """Parameters of one device and dtype, in one batch but for what `portions` cuts."""
        rule = self._rule_of(group).rule
        slots = [self._slot(param, rule) for param in params]
        self._check_shapes(params, slots, rule)
        device, dtype = slots[0].param.device, slots[0].param.dtype
        compute = compute_dtype(dtype)
        lr = factor(group["lr"], device, compute)
        kind = choose(rule, device, dtype, group["fused"])
        if kind not in self._backends:
            self._backends[kind] = kind()
        for part in portions(rule, slots):
            batch = Batch(
                rule=rule,
                weights=self._weights(group, device, compute),
                slots=slots[part.start : part.stop],
                lr=lr,
                decay=group["weight_decay"] * rule.decay_scale,
                maximize=group["maximize"],
                total_steps=group["total_steps"],
                device=device,
                compute_dtype=compute,
            )
            yield batch, params[part.start : part.stop], self._backends[kind]

    def _init_group(self, group: dict[str, Any]) -> None:
        """Make what the group's first step needs: state, and weights in the compute dtype.

        torch.compile knows this name: it calls the method instead of tracing it, so that the
        first step and all others are one graph.
        """
        rule = self._rule_of(group).rule
        for (device, dtype), params in alike(group["params"]).items():
            self._weights(group, device, compute_dtype(dtype))
            for param in params:
                state = self.state[param]
                if not state:
                    self._ages.pop(param, None)
                    local = shards.to_local(param)
                    state["step"] = torch.zeros((), dtype=resume.step_dtype(), device=local.device)
                    for key, value in rule.init_state(local, shards.real_shape(param)).items():
                        spread = key in rule.keys_per("coordinate")
                        state[key] = shards.wrap_rows(value, param) if spread else value

    def _slot(self, param: Tensor, rule: UpdateRule) -> Slot:
        """The local tensors of a parameter, and of its state."""
        state, grad = self.state[param], param.grad
        if grad is not None and shards.is_whole(param):
            # Much the same as below, for a fraction of what all that costs a small tensor.
            age = self._age(param) if rule.has_basis(param.shape) else None
            return Slot(param, grad, state, state["step"], param.shape, age=age)
        entries = {key: shards.to_local(value) for key, value in state.items()}
        local, grad, shape = (
            shards.to_local(param),
            shards.local_grad(param),
            shards.real_shape(param),
        )
        age = self._age(param) if rule.has_basis(shape) else None
        return Slot(local, grad, entries, state["step"], shape, shards.parts_of(param), age)

    def _check_shapes(self, params: list[Tensor], slots: list[Slot], rule: UpdateRule) -> None:
        """Refuse a parameter that changed its shape; nothing has moved yet.

        State is looked at only where parameters or shapes are not those of the step before: with
        small tensors every look is felt.
        """
        if torch.compiler.is_compiling():
            return
        now = [*map(id, params)], [slot.shape for slot in slots]
        first = now[0][0]
        if self._shapes.get(first) != now:
            try:
                for param, slot in zip(params, slots, strict=True):
                    check_shape(slot.shape, self.state[param], rule.keys_per("coordinate"))
            except RuntimeError:
                self._ages.clear()  # they have counted a step that is not taken
                raise
            self._shapes[first] = now

    def _age(self, param: Tensor) -> int | None:
        """Steps that it has taken, as far as that can be known without waiting for a device.

        Where a gradient was broken on another device than the CPU, one too many.
        """
        step = self.state[param]["step"]
        if torch.compiler.is_compiling() or capturing(step.device):
            return None
        if type(step) is not Tensor or step.is_meta:
            return None
        if step.device.type == "cpu":
            return int(step)
        age = self._ages.get(param)
        age = int(step) if age is None else age  # waits, once
        self._ages[param] = age + 1
        return age

    def _weights(self, group: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Weights:
        """The rule's weights where the arithmetic is, cast once."""
        key = ((group["rule_sha256"], group["rule_config"]), device, dtype)
        if key not in self._cast:
            weights = self._rule_of(group).weights
            self._cast[key] = {name: w.to(device, dtype) for name, w in weights.items()}
        return self._cast[key]

    # -- looked at ---------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block, parameters are at the mean of where the steps have led.

        To evaluate a model or to hand it on, where the end of the training is not known: the mean
        is quieter than where the last step has led (`rules.deferral` has the source). Where
        `total_steps` was told, steps get quiet by themselves, and there is little to gain.
        Parameters whose rule defers nothing, or that have not taken a step, stay as they are. With
        an `lr` that changes, the mean is one of steps at today's.

        It takes one more copy of the parameters for as long as the block lasts, and afterwards they
        are back to the bit. A checkpoint to go on from belongs outside of the block.

        Raises:
            RuntimeError: within another such block; and from `step` within this one.

        Example:
            >>> import torch
            >>> model = torch.nn.Linear(4, 1)
            >>> optimizer = LearnedOptimizer(model.parameters())
            >>> with optimizer.averaged():
            ...     loss = model(torch.ones(8, 4)).square().mean()
        """
        if self._looked_at:
            raise RuntimeError("averaged() is in use: parameters are at the mean already")
        self._looked_at = True
        params = (param for group in self.param_groups for param in group["params"])
        try:
            with shards.gathered_anew(params), at_mean(self._places()):
                yield
        finally:
            self._looked_at = False

    def _places(self) -> Iterator[Place]:
        """Of all parameters that have a mean."""
        for group in self.param_groups:
            rule = self._rule_of(group).rule
            if rule.owing is None:
                continue
            key, row = rule.owing
            for param in group["params"]:
                state = self.state.get(param)
                if state:
                    local = shards.to_local(param.detach())
                    owed = shards.to_local(state[key])[row]
                    weights = self._weights(group, local.device, owed.dtype)
                    lr = factor(group["lr"], local.device, owed.dtype)
                    yield Place(local, owed, lr * (1 - rule.share(weights, group["total_steps"])))

    # -- copied, pickled, resumed ------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles keep: torch's three, and the rules."""
        return {**super().__getstate__(), "_rules": self._rules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also called by `load_state_dict`; fills in options that an older version did not have."""
        super().__setstate__(state)
        # torch adds this one; without it `type(self)(params, **self.defaults)` works here too.
        self.defaults.pop("differentiable", None)
        for group in self.param_groups:
            for key in self.defaults.keys() - {"rule"}:
                group.setdefault(key, self.defaults[key])
        if "_alarm" not in self.__dict__:
            self._alarm = Alarm()
            self._looked_at = False
        self._drop_scratch()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint, bit for bit.

        State keeps the dtype that the rule stores it in (float64 with float64 parameters), not the
        parameter's. Options are the checkpoint's, as torch has it; one warning where that changes
        a `total_steps` that was given here.

        Raises:
            ValueError: the checkpoint was made under another rule or other weights, or does not
                fit the parameters; nothing has changed then.
        """
        rules = [self._rule_of(group).rule for group in self.param_groups]
        with resume.loading(self, rules):
            super().load_state_dict(state_dict)
