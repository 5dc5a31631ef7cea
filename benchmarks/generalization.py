"""Does the learned rule, untouched, beat tuned optimizers on problems it never saw?

    python -m benchmarks.generalization --split validation              to choose weights by
    python -m benchmarks.generalization                                 the held-out problems
    python -m benchmarks.generalization --split fine_tuning             networks trained before
    python -m benchmarks.generalization --split domains                 other kinds of problem
    python -m benchmarks.generalization --split validation --rule DIR --output DIR
    python -m benchmarks.generalization --baselines-only                fills the cache
    python -m benchmarks.generalization --again                         the rule anew

Problems are in `benchmarks.general.items`, three runs of each. Every tuned baseline has the rate of
its grid that ends lowest on these very runs, chosen for each problem with hindsight, and where that
is at an end of the grid, rates beyond it are tried until one is worse; the learned rule has nothing
chosen, and is run without and with `total_steps`, and without but evaluated within
`LearnedOptimizer.averaged` over the last tenth of the steps, as schedule-free optimizers are by
their own `eval`. Final loss: the mean over the last 5 % of the steps. A ratio of two of them is
clipped to [0.1, 10] in each run, after adding 1e-5 of the loss at the start to both; means over
runs and problems are geometric, intervals are bootstrapped over problems. A late rise: the mean
over the last 10 % of the steps is above 1.1 times the lowest such mean of the run; of a run that is
looked at within `averaged` it says nothing, as only its last tenth is. `less` judges parts of a
list: without what is no longer unseen, and without the data that training families have too.
Baselines and controls are kept in results/baselines/generalization; needs the extra `benchmarks`
only to fill that. Writes results/generalization_<split>.json and .png, problem by problem, and goes
on from what it finds there of the same weights. The same weights under other code are another rule,
which only `--again` runs; of the controls then delete the cache too (`benchmarks.general.store`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.general.figure import RULE, draw
from benchmarks.general.items import LESS, SPLITS, Item, chosen
from benchmarks.general.report import show
from benchmarks.general.scores import judge, versus
from benchmarks.general.steppers import Unrolled, learned
from benchmarks.general.store import (
    ENDS,
    MAIN,
    MakeStepper,
    Record,
    baselines,
    from_control,
    has_rule,
    problem,
    read,
    run_rules,
)
from benchmarks.results import ANEW, RESULTS, provenance, tell_of_kept, write_json
from learned_optim.hub import load_rule
from learned_optim.weights import LoadedRule


def evaluate(
    split: str,
    items: list[Item],
    loaded: LoadedRule,
    path: Path,
    make: MakeStepper = Unrolled,
    *,
    again: bool = False,
) -> dict[str, Any]:
    """Run what is missing, and write the file after every problem.

    With `again` everything is: what the file has, and what a control in the cache says of the rule.
    The file says when and where something was last run, not when it was last looked at.
    """
    saved = {} if again else read(path)
    same = saved.get("rule", {}).get("sha256") == loaded.sha256
    kept: dict[str, Record] = saved.get("items", {}) if same else {}
    made = {key: saved.get(key, now) for key, now in provenance().items()}
    for item in items:
        record = kept.get(item.name, {})
        if record.get("problem") != problem(item) or not has_rule(record["entries"], RULE, loaded):
            asked = make is Unrolled and not again
            known = from_control(split, item, RULE, loaded) if asked else {}
            entries = known or run_rules(item, {RULE: loaded}, make=make)
            kept[item.name], made = {"problem": problem(item), "entries": entries}, provenance()
            write_json(path, _content(split, loaded, kept) | made)
    return _content(split, loaded, kept) | made


def _content(split: str, loaded: LoadedRule, kept: Mapping[str, Record]) -> dict[str, Any]:
    """Of the results file, problems in the order of their list."""
    return {
        "split": split,
        "rule": {"name": loaded.name, "sha256": loaded.sha256},
        "items": {item.name: kept[item.name] for item in SPLITS[split] if item.name in kept},
    }


def merged(items: list[Item], split: str, ours: Mapping[str, Record]) -> dict[str, Record]:
    """By problem, the baselines' and controls' entries with the rule's."""
    found = {}
    for item in items:
        record = baselines(split, item)
        extra = ours.get(item.name, {}).get("entries", {})
        found[item.name] = record | {"entries": record["entries"] | extra}
    return found


def judge_parts(
    records: Mapping[str, Record], parts: Mapping[str, tuple[str, ...]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """By part, entry and rival with a schedule or none, see `versus`; of what the part leaves."""
    found = {}
    for label, absent in parts.items():
        left = {name: record for name, record in records.items() if name not in absent}
        found[label] = {
            key: {rival: versus(left, key, rival) for rival in MAIN}
            for key in (RULE + end for end in ENDS)
        }
    return found


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description="The learned rule on problems it never saw.")
    parser.add_argument("--split", choices=sorted(SPLITS), default="held_out")
    parser.add_argument("--rule", default="default", help="a bundled name or a folder")
    parser.add_argument("--tasks", nargs="+", default=(), metavar="NAME", help="a part of the list")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of JSON and picture")
    parser.add_argument(
        "--optimizer", action="store_true", help="run LearnedOptimizer itself: the same, but slower"
    )
    parser.add_argument("--baselines-only", action="store_true", help="leave the rule out")
    parser.add_argument(
        "--again", action="store_true", help=f"run the rule {ANEW}; the baselines are kept"
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    items = chosen(options.split, options.tasks)
    records = merged(items, options.split, {})
    if options.baselines_only:
        show(records, {key: judge(records, key) for key in ("hand" + end for end in ENDS)})
        return
    path = options.output / f"generalization_{options.split}.json"
    make = learned if options.optimizer else Unrolled
    rule = load_rule(options.rule)
    if not options.again:
        tell_of_kept(path)
    content = evaluate(options.split, items, rule, path, make, again=options.again)
    records = merged(items, options.split, content["items"])
    content["summary"] = {key: judge(records, key) for key in (RULE + end for end in ENDS)}
    content["less"] = judge_parts(records, LESS.get(options.split, {}))
    write_json(path, content)
    show(records, content["summary"])
    draw(records, content["rule"]["name"], path.with_suffix(".png"))
    print(f"Written: {path} and {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
