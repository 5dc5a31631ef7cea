"""What `LearnedOptimizer.load_state_dict` does on top of torch's.

torch casts every state tensor but "step" to the parameter's dtype
(https://github.com/pytorch/pytorch/issues/43706), and shares memory with the checkpoint. Here
state keeps the dtype that the rule stores it in, and a copy is made. And a state means nothing
under other weights than its own, so that is checked before anything changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from learned_optim import bases
from learned_optim.alarm import warn_caller
from learned_optim.bases import Basis
from learned_optim.matrices import as_matrix
from learned_optim.rules import UpdateRule, compute_dtype
from learned_optim.shards import cut_alike, fits, is_sharded, real_shape
from learned_optim.weights import LoadedRule

# How a param group refers to its rule; plain values, which travel in every checkpoint.
RULE_KEYS = ("rule", "rule_sha256", "rule_config")

Group = dict[str, Any]
# The saved number of a parameter, the parameter, and the rule it runs under.
Pair = tuple[object, Tensor, UpdateRule]


def rule_config(rule: UpdateRule) -> str:
    """The rule and its config as one plain value, for param groups."""
    return json.dumps({"rule": rule.name, **rule.config()}, sort_keys=True)


def rule_entries(loaded: LoadedRule) -> dict[str, str]:
    """`RULE_KEYS` of a rule.

    The config is among them, as rules that differ in it alone have the same weights.
    """
    config = rule_config(loaded.rule)
    return {"rule": loaded.name, "rule_sha256": loaded.sha256, "rule_config": config}


def check_group(group: Group, loaded: LoadedRule) -> None:
    """Refuse to run a group that another optimizer ran under a rule of this name, but not this one.

    Raises:
        ValueError: says both.
    """
    entries = rule_entries(loaded)
    if any(group.get(key, entries[key]) != entries[key] for key in RULE_KEYS[1:]):
        raise ValueError(
            f"the param group was run by the rule {_describe(group)} but its name stands for "
            f"{_describe(entries)} here; give the rule itself, as load_rule returns it, or leave "
            "rule_sha256 and rule_config out of the group"
        )


def step_dtype() -> torch.dtype:
    """What the step counter is kept in: as torch.optim has it, float32 or a float64 default."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def paired(
    groups: Sequence[Group], rules: Sequence[UpdateRule], saved: Mapping[str, Any]
) -> Iterator[Pair]:
    """The parameters in the order in which torch matches them, those that have saved state."""
    for group, rule, saved_group in zip(groups, rules, saved["param_groups"], strict=False):
        for number, param in zip(saved_group["params"], group["params"], strict=False):
            if saved["state"].get(number):
                yield number, param, rule


def check(groups: Sequence[Group], rules: Sequence[UpdateRule], saved: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that this optimizer cannot continue.

    Raises:
        ValueError: it was not made by LearnedOptimizer, or under other weights, or the shapes
            of its state do not fit the parameters.
    """
    for index, (group, old) in enumerate(zip(groups, saved["param_groups"], strict=False)):
        if "rule_sha256" not in old:
            raise ValueError(
                f"param group {index} of the checkpoint names no learned rule (it has "
                f"{sorted(map(str, old))}): it was not written by LearnedOptimizer, so its state "
                "means nothing here; start with a fresh state"
            )
        if old["rule_sha256"] != group["rule_sha256"] or _differ(old, group):
            raise ValueError(
                f"param group {index} of the checkpoint was made by the rule {_describe(old)} but "
                f"this optimizer runs {_describe(group)}; construct it with the checkpoint's rule"
            )
    for number, param, rule in paired(groups, rules, saved):
        _check_state(number, saved["state"][number], param, rule)


def _differ(old: Group, new: Group) -> bool:
    """Whether the configs disagree; a field that one of them does not have yet is no quarrel."""
    a, b = (json.loads(group.get("rule_config", "{}")) for group in (old, new))
    return any(a[key] != b[key] for key in a.keys() & b.keys())


def _describe(group: Group) -> str:
    name, sha256, config = (group.get(key) for key in RULE_KEYS)
    return f"{name!r} (weights sha256 {sha256}, config {config})"


def _check_state(number: object, state: Mapping[str, Any], param: Tensor, rule: UpdateRule) -> None:
    whole = real_shape(param)
    expected: dict[str, tuple[int, ...]] = {"step": ()}
    for key, spec in rule.state_spec.items():
        expected[key] = (spec.rows, *whole) if spec.per == "coordinate" else (spec.rows,)
    cut = rule.keys_per("coordinate")
    if rule.has_basis(whole):
        expected |= bases.shapes(*as_matrix(whole))
    for key, shape in expected.items():
        if key not in state:
            raise ValueError(
                f"the checkpoint's state of parameter {number} lacks {key!r}, which the rule "
                f"{rule.name!r} keeps for a parameter of shape {tuple(whole)}. Another version of "
                "learned_optim may have made it: resume with that one, or begin a new optimizer"
            )
        value = state[key]
        found = tuple(value.shape) if isinstance(value, Tensor) else ()
        if found != shape:
            raise ValueError(
                f"the checkpoint's {key!r} of parameter {number} has shape {found} but a "
                f"parameter of shape {tuple(param.shape)} needs {shape}"
            )
        if key in cut and is_sharded(param) and not is_sharded(value):
            raise ValueError(
                f"the checkpoint's {key!r} of parameter {number} is a plain tensor but the "
                "parameter is sharded: load it with torch.distributed.checkpoint"
            )
        if is_sharded(value) and not fits(value, param):
            raise ValueError(
                f"the checkpoint's {key!r} of parameter {number} is a DTensor on "
                f"{value.device_mesh}, which the parameter is not on: load it with "  # type: ignore[union-attr]
                "torch.distributed.checkpoint, or as a full state dict"
            )


def restore(
    state: Mapping[Tensor, dict[str, Any]],
    groups: Sequence[Group],
    rules: Sequence[UpdateRule],
    saved: Mapping[str, Any],
) -> None:
    """Replace what torch made of the saved state by exact copies, on the parameters' devices.

    Of a sharded parameter they are cut as it is, however they were in the checkpoint.
    """
    for number, param, rule in paired(groups, rules, saved):
        old, new = saved["state"][number], state[param]
        step, device = old["step"], param.device
        if isinstance(step, Tensor):
            new["step"] = step.to(device, copy=True)
        else:
            new["step"] = torch.tensor(step, dtype=step_dtype(), device=device)
        cut = rule.keys_per("coordinate")
        for key, dtype in storage_dtypes(rule, param).items():
            rows = cut_alike(old[key], param) if key in cut else old[key]
            new[key] = rows.to(device, dtype, copy=True)


def storage_dtypes(rule: UpdateRule, param: Tensor) -> dict[str, torch.dtype]:
    """What each entry of the state of `param` is stored in."""
    compute = compute_dtype(param.dtype.to_real())
    double = compute == torch.float64
    kinds = {key: compute if double else spec.dtype for key, spec in rule.state_spec.items()}
    if rule.has_basis(real_shape(param)):
        kinds |= dict.fromkeys(Basis._fields, compute)
    return kinds


def warn_of_horizons(before: Sequence[int | None], groups: Sequence[Group]) -> None:
    """Say so where a checkpoint's horizon took the place of one that was given."""
    for index, (mine, group) in enumerate(zip(before, groups, strict=True)):
        loaded = group["total_steps"]
        if mine not in (None, loaded):
            warn_caller(
                f"param group {index} was made with total_steps={mine}, and the checkpoint has put "
                f"{loaded} in its place, as it does with lr. For the new one, set "
                f"optimizer.param_groups[{index}]['total_steps'] = {mine} after loading"
            )


@contextmanager
def loading(optimizer: Optimizer, rules: Sequence[UpdateRule]) -> Iterator[None]:
    """Within it, torch's `load_state_dict` is checked before, and put right after.

    By hooks, so that `check` sees what the user's pre-hooks made of the checkpoint, and `restore`
    is done before the user's post-hooks look at the state.

    Args:
        optimizer: a `LearnedOptimizer`.
        rules: of its groups.

    Raises:
        ValueError: see `check`.
    """
    saved: dict[str, Any] = {}
    names = [{key: group[key] for key in RULE_KEYS} for group in optimizer.param_groups]
    horizons = [group["total_steps"] for group in optimizer.param_groups]

    def before(_: Optimizer, final: dict[str, Any]) -> None:
        check(optimizer.param_groups, rules, final)
        saved.update(final)

    def after(_: Optimizer) -> None:
        restore(optimizer.state, optimizer.param_groups, rules, saved)
        for group, name in zip(optimizer.param_groups, names, strict=True):
            group.update(name)
        warn_of_horizons(horizons, optimizer.param_groups)

    handles = (
        optimizer.register_load_state_dict_pre_hook(before),
        optimizer.register_load_state_dict_post_hook(after, prepend=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
