"""What is kept of every run, and the cache of those that a new rule does not change.

`results/baselines/generalization/<split>/<item>.json` holds the baselines and the two controls of
one problem. An entry is made again when its problem or its definition changes. A rule's definition
is the hash of its weights, which does not see the rule's code: after a change of that, or of any
other code behind an entry, delete the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.general.entries import Entry, digits, entry, tuned_entry, widened
from benchmarks.general.grids import METHODS, GridStepper, Method
from benchmarks.general.items import Item
from benchmarks.general.steppers import PACKAGED, Instances, Stepper, Together, Unrolled
from benchmarks.general.training import Outcome, train
from benchmarks.results import RESULTS, provenance, write_json
from learned_optim.rules import Default
from learned_optim.rules.hand import HAND_SCALE
from learned_optim.weights import LoadedRule, in_memory

TOLD = "_told"  # ends the key of an entry that was told `total_steps`
MEAN = "_mean"  # of one that was not, and is looked at within `averaged`
ENDS = ("", TOLD, MEAN)
PLAIN_ADAM = "adam_default"
GENTLE = 0.3
SILENT = -6.0  # log of the feedback's rate, as it is stored: nothing beside a pace of 1
LABELS: dict[str, str] = {
    **{key: method.label for key, method in METHODS.items()},
    PLAIN_ADAM: "Adam, 0.001",
    **{key: each.label for key, each in PACKAGED.items()},
    "schedule_free": "Schedule-free AdamW, 0.0025",  # its default
    "hand": "hand rule, no learning",
    "fixed": "hand rule at a fixed pace",
    "random": "random weights",
    "gentle": f"hand rule at lr={GENTLE}",
}
# What weights are chosen against needs no more than these.
MAIN = ("adam", "adamw_cosine", "muon_cosine")
_STRONG = {key: METHODS[key] for key in MAIN}
# A network that is trained already may bear shorter steps only, and so may one that learns from
# rewards; descent has them as it is.
_LOWER = (1e-5, 3e-5, 1e-4, 3e-4)


def _from(lowest: int) -> dict[str, Method]:
    rates = _LOWER[lowest:]
    return {key: replace(each, rates=(*rates, *each.rates)) for key, each in _STRONG.items()}


RIVALS: dict[str, dict[str, Method]] = {
    "validation": _STRONG,
    "held_out": METHODS,
    "domains": METHODS | _from(2),
    "fine_tuning": _from(0),
}

Record = dict[str, Any]
MakeStepper = Callable[[Sequence[LoadedRule], int], Stepper]


def controls(split: str = "held_out") -> dict[str, LoadedRule]:
    """`default` as it is drawn, which is the hand rule.

    On lists that nothing is chosen by, also with a pace that nothing changes, so that constants and
    a schedule are all that is left; on held-out problems with random heads; for fine-tuning with
    shorter steps, as by `lr=GENTLE`.
    """
    rule, generator = Default(), torch.Generator().manual_seed(1)
    hand = rule.init_weights(torch.Generator().manual_seed(0))
    heads = {
        key: torch.randn(value.shape, generator=generator) * value.shape[-1] ** -0.5
        for key, value in hand.items()
        if key.endswith("head.w")
    }
    found = {"hand": in_memory(rule, hand, name="hand")}
    if split in ("held_out", "domains"):
        still = {"hand.log_rate": torch.full((2,), SILENT), "hand.brake": torch.zeros(1)}
        found["fixed"] = in_memory(rule, hand | still, name="fixed")
    if split == "held_out":
        found["random"] = in_memory(rule, hand | heads, name="random")
    if split == "fine_tuning":
        steps = hand["hand.log_step"] + math.log(GENTLE) / HAND_SCALE
        found["gentle"] = in_memory(rule, hand | {"hand.log_step": steps}, name="gentle")
    return found


def cache_path(split: str, item: Item) -> Path:
    """Of the baselines and controls of one problem."""
    return RESULTS / "baselines" / "generalization" / split / f"{item.name}.json"


def problem(item: Item) -> dict[str, Any]:
    """What an entry is only valid for."""
    task = item.task
    # By name, so that a task class may declare its fields in another order.
    fields = {key: repr(value) for key, value in sorted(vars(task).items())}
    return {
        "task": {"class": type(task).__name__, **fields},
        "steps": item.steps,
        "seeds": item.seeds(),
    }


def baselines(split: str, item: Item, *, progress: bool = True) -> Record:
    """The record of baselines and controls: from the cache, what is missing run and added."""
    path = cache_path(split, item)
    record = read(path)
    if record.get("problem") != problem(item):
        record = {"problem": problem(item), "entries": {}}
    entries, methods = record["entries"], RIVALS[split]
    known = {key for key in (*methods, PLAIN_ADAM, *PACKAGED) if _is_known(entries, key, methods)}
    absent = {key: method for key, method in methods.items() if key not in known}
    if PLAIN_ADAM not in known:
        absent["adam"] = methods["adam"]
    packages = [key for key in PACKAGED if key not in known]
    if absent or packages:
        record["start"], found = _run_baselines(item, absent, packages, progress)
        entries.update(found)
        write_json(path, record | provenance())
    for key, method in methods.items():
        if entries[key]["at_edge"] and "rates" not in entries[key]:
            entries[key] = _widen(item, method, record, key, progress)
            write_json(path, record | provenance())
    wanted = {
        key: rule for key, rule in controls(split).items() if not has_rule(entries, key, rule)
    }
    for key, rule in wanted.items():  # one by one: as they are run, their configs may differ
        entries.update(run_rules(item, {key: rule}, progress=progress))
        write_json(path, record | provenance())
    return record


def identity(key: str, methods: Mapping[str, Method] = METHODS) -> str:
    """What defines a baseline, as text."""
    if key in PACKAGED:
        return f"{PACKAGED[key].label}, every option at its default"
    method = methods["adam" if key == PLAIN_ADAM else key]
    rates = (1e-3,) if key == PLAIN_ADAM else method.rates
    return f"{key}: rates {list(rates)}, cosine {method.cosine}, decay {method.decay}"


def _is_known(entries: Mapping[str, Entry], key: str, methods: Mapping[str, Method]) -> bool:
    return entries.get(key, {}).get("id") == identity(key, methods)


def has_rule(entries: Mapping[str, Entry], key: str, rule: LoadedRule) -> bool:
    """Whether all of a rule's entries are there, of these very weights."""
    return all(entries.get(key + end, {}).get("id") == rule.sha256 for end in ENDS)


def from_control(split: str, item: Item, key: str, rule: LoadedRule) -> dict[str, Entry]:
    """What `run_rules` would give for `key`, where a control has these very weights; else empty."""
    entries = read(cache_path(split, item)).get("entries", {})
    for name, control in controls(split).items():
        if control.sha256 == rule.sha256 and has_rule(entries, name, control):
            return {key + end: entries[name + end] for end in ENDS}
    return {}


def run_rules(
    item: Item,
    rules: Mapping[str, LoadedRule],
    *,
    progress: bool = True,
    make: MakeStepper = Unrolled,
) -> dict[str, Entry]:
    """Entries `<key>`, `<key>_told` and `<key>_mean` of each rule.

    Args:
        item: the problem.
        rules: by key.
        progress: whether to show a bar.
        make: `Unrolled`, or `learned` for the optimizer itself.
    """
    label = ", ".join(rules) if progress else ""
    outcome = train(item, lambda: make(list(rules.values()), item.steps), label)
    found = {}
    for index, (key, rule) in enumerate(rules.items()):
        for place, end in enumerate(ENDS):
            found[key + end] = {"id": rule.sha256} | entry(outcome, len(ENDS) * index + place)
    return found


def _run_baselines(
    item: Item, methods: Mapping[str, Method], packages: Sequence[str], progress: bool
) -> tuple[list[float], dict[str, Entry]]:
    """The first losses, and an entry for each method and package; Adam at 1e-3 beside Adam."""
    makers = [PACKAGED[key].make for key in packages]

    def steppers() -> Stepper:
        return Together([GridStepper(methods, item.steps), Instances(makers)])

    outcome = train(item, steppers, "baselines" if progress else "")
    found, first = {}, 0
    for key, method in methods.items():
        copies = range(first, first + len(method.rates))
        found[key] = tuned_entry(outcome, copies, method, identity(key, methods))
        if key == "adam":
            plain = copies[method.rates.index(1e-3)]
            found[PLAIN_ADAM] = {"id": identity(PLAIN_ADAM, methods)} | entry(outcome, plain)
        first = copies.stop
    for copy, key in enumerate(packages, first):
        version = metadata.version(PACKAGED[key].package)
        found[key] = {"id": identity(key), "version": version} | entry(outcome, copy)
    return digits(outcome.start), found


def _widen(item: Item, method: Method, record: Record, key: str, progress: bool) -> Entry:
    def run(beyond: Method) -> Outcome:
        label = f"{key} at {beyond.rates[0]:g}" if progress else ""
        return train(item, lambda: GridStepper({key: beyond}, item.steps), label)

    return widened(record["entries"][key], method, record["start"], run)


def read(path: Path) -> Record:
    """The file's content, or nothing."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
