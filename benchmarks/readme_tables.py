"""Tables of the committed results, for the README and a page of all: no number by hand.

    python -m benchmarks.readme_tables            write them
    python -m benchmarks.readme_tables --check    exit with 1 if they are not up to date

Reads `benchmarks/results/*.json`. The README has the table of `benchmarks.overview`, and
`benchmarks/results/README.md` has all others. Twelve kinds of files have a table: comparisons of
`benchmarks.paper` (they hold `cases`), the demo's (`networks`), those of
`benchmarks.generalization` (`summary`), `benchmarks.real_scale` (`parameters`), and those of
`benchmarks.meta_training_throughput` (`headline`), `benchmarks.estimators` (`bowl`),
`benchmarks.fault_test` (`kills`), `benchmarks.short_runs` (`lengths`), `benchmarks.step_time`
(`two_threads`), `benchmarks.half_state` (`half_state`), `benchmarks.default_headroom` (`draws`)
and `benchmarks.default_bases` (`draws` and `variants`); others are left to their own scripts.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import engine_tables
from benchmarks.baselines import BASELINES
from benchmarks.cost_table import step_time
from benchmarks.default_bases import column, kinds
from benchmarks.default_headroom import by_horizon
from benchmarks.default_headroom import table as gains
from benchmarks.general.store import LABELS, MAIN, MEAN, TOLD
from benchmarks.markdown import markdown, number, with_interval
from benchmarks.overview import FILES, PROBLEMS, overview
from benchmarks.results import RESULTS
from benchmarks.short_runs import ENTRIES, LISTS, mean
from benchmarks.statistics import summary

README = Path(__file__).resolve().parent.parent / "README.md"
ALL = RESULTS / "README.md"
# What comes first on the page of all.
HEADLINES = (
    "generalization_held_out",
    "generalization_domains",
    "generalization_fine_tuning",
    "demo_digits",
    "real_scale",
    "short_runs",
    "step_time",
)
HEAD = """# Results

Written by `make readme` from the files beside this one: do not edit. Each table names its file, the
command that made it, versions and hardware. How to read them: [README](../../README.md#results);
the paper's experiments with the paper's own figures: [docs/paper.md](../../docs/paper.md).
"""
BEGIN = "<!-- results: begin (written by `make readme`, do not edit) -->"
END = "<!-- results: end -->"
NOTHING = "None yet: a table appears here when a result file of a trained rule is committed."


def provenance(content: Mapping[str, Any], file: str) -> str:
    """Where the numbers come from, as the result file says."""
    link = f"[`{file}`](benchmarks/results/{file})"
    parts = [link]
    if "command" in content:
        parts.append(f"`{content['command']}`")
    versions = content.get("versions", {})
    if "torch" in versions:
        parts.append(f"torch {versions['torch']}")
    if "processor" in content.get("hardware", {}):
        parts.append(content["hardware"]["processor"])
    if "note" in content:
        parts.append(content["note"])
    return "<sub>" + ", ".join(parts) + "</sub>"


def paper_ratio(case: Mapping[str, Any], stated: float | None) -> float | None:
    """The learned loss over the best baseline's in the paper's figure, where it shows them."""
    if stated is not None:
        return stated
    shown = {entry: facts["paper"] for entry, facts in case["entries"].items()}
    baselines = [shown[name] for name in BASELINES if shown.get(name) is not None]
    if shown.get("learned") is None or not baselines:
        return None
    return shown["learned"] / min(baselines)


# Of learned rules beside the one that was trained for the experiment.
KINDS = {"learned-sub": ", LSTM-sub", "learned-mnist": ", rule of MNIST"}


def comparison_rows(content: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row for each case and each loss that a learned rule was measured on."""
    titles = {
        "final": "",
        "train_set": ", whole training set",
        "test_set": ", test set",
    }
    for case in content["cases"].values():
        for metric, suffix in titles.items():
            ranked = case["metrics"].get(metric)
            entries = {} if ranked is None else ranked["entries"]
            key = next((key for key in ("learned", *KINDS) if key in entries), None)
            if ranked is None or key is None:
                continue
            learned = entries[key]
            best = ranked["best_baseline"]
            others = [
                number(values["ratio"]["mean"])
                for entry, values in sorted(entries.items())
                if re.fullmatch(r"learned-\d+", entry)
            ]
            paper = paper_ratio(case, content.get("paper_ratio")) if metric == "final" else None
            yield [
                f"{case['title']}, {case['steps']} steps{suffix}{KINDS.get(key, '')}",
                number(learned["mean"]),
                f"{number(ranked['entries'][best]['mean'])} ({BASELINES[best].label})",
                with_interval(learned["ratio"]["mean"], learned["ratio"]["interval_95"]),
                ", ".join(others) or "-",
                "-" if paper is None else number(paper),
            ]


def comparison(content: Mapping[str, Any]) -> str:
    """The table of a file of `benchmarks.paper`; empty before there is a learned rule in it."""
    header = ["Mean loss", "learned", "best tuned baseline", "ratio (95 %)"]
    header += ["other meta-seeds", "paper's ratio"]
    rows = list(comparison_rows(content))
    return markdown(header, rows) if rows else ""


def digits(content: Mapping[str, Any]) -> str:
    """The table of a file of the demo."""
    rows = []
    for network in content["networks"]:
        steps = network["evaluated_at"][-1]
        for contender in network["contenders"]:
            losses = sorted(
                float("inf") if run["train_loss"][-1] is None else run["train_loss"][-1]
                for run in contender["runs"]
            )
            middle = losses[len(losses) // 2]
            accuracies = sorted(run["test_accuracy"][-1] for run in contender["runs"])
            rows.append(
                [
                    f"digits, {network['activation']}, {steps} steps: {contender['name']}",
                    number(None if middle == float("inf") else middle),
                    number(contender["ratio_to_best_adam"]),
                    f"{accuracies[len(accuracies) // 2]:.1%}",
                ]
            )
    header = ["The demo, medians", "training loss", "/ best Adam", "test accuracy"]
    return markdown(header, rows)


def generalization(content: Mapping[str, Any]) -> str:
    """The table of `benchmarks.generalization`."""
    if content["split"] not in PROBLEMS:
        return ""
    ends = ("", MEAN, TOLD)
    judged = {end: content["summary"]["rule" + end] for end in ends}
    rows = []
    for rival, label in LABELS.items():
        found = {end: facts["versus"] for end, facts in judged.items()}
        pairs = [pairs.get(rival + end) or pairs.get(rival) for end, pairs in found.items()]
        if all(pairs):
            rows.append([label, *(cell for pair in pairs for cell in _pair(pair))])
    for part, entries in content.get("less", {}).items():
        for rival in MAIN:
            pairs = [entries["rule" + end][rival] for end in ends]
            name = f"{LABELS[rival]}, {part} ({pairs[0]['problems']} problems)"
            rows.append([name, *(cell for pair in pairs for cell in _pair(pair))])
    tests = [facts["test_versus"]["adam"] for facts in judged.values()]
    rows.append(
        [
            "Adam, best rate by training loss: test loss",
            *(cell for pair in tests for cell in _pair(pair)),
        ]
    )
    # Within `averaged` only the last tenth is looked at, so nothing can be said to rise.
    rises = [
        "-" if end == MEAN else f"{facts['late_rises']} of {facts['runs']}"
        for end, facts in judged.items()
    ]
    rows.append(["runs that rise late", *(cell for rise in rises for cell in (rise, ""))])
    problems = judged[""]["versus"]["adam"]["problems"]
    header = [
        f"`{content['rule']['name']}` on {problems} {PROBLEMS[content['split']]}: "
        "final loss over that of"
    ]
    columns = ("ratio (95 %)", "within `averaged()`", "`total_steps` told")
    return markdown([*header, *(cell for column in columns for cell in (column, "wins"))], rows)


def _pair(pair: Mapping[str, Any]) -> tuple[str, str]:
    return with_interval(pair["ratio"], pair["interval_95"]), f"{pair['wins']:.0%}"


def real_scale(content: Mapping[str, Any]) -> str:
    """The table of `benchmarks.real_scale`."""
    rows = [
        [run["label"], number(run["final_loss"]), number(run["test_loss"]), *_at_mean(run)]
        for run in content["runs"].values()
    ]
    size = f"{content['parameters'] / 1e6:.1f}M parameters, {content['size']['steps']} steps"
    header = [
        f"Language model, {size}",
        "training loss",
        "test loss",
        "the same within `averaged()`",
    ]
    return markdown(header, rows)


def _at_mean(run: Mapping[str, Any]) -> tuple[str]:
    return (number(run["test_loss_averaged"]) if "test_loss_averaged" in run else "",)


def short_runs(content: Mapping[str, Any]) -> str:
    """The tables of `benchmarks.short_runs` in one: the means over the problems of each list."""
    rows = [
        [f"{title}, `total_steps` {label}", *(number(mean(p, key)) for p in content[part].values())]
        for part, title in LISTS.items()
        for key, label in ENTRIES.items()
    ]
    header = ["`default` on short runs: final loss over tuned Adam's"]
    return markdown([*header, *(f"{steps} steps" for steps in content["lengths"])], rows)


def headroom(content: Mapping[str, Any]) -> str:
    """The table of `benchmarks.default_headroom`: means, their intervals, and medians."""
    columns = [
        {axis: summary(values) for axis, values in gains(draws).items()}
        for draws in by_horizon(content["draws"]).values()
    ]
    rows = [
        [axis, *(cell for column in columns for cell in _gain(column[axis]))] for axis in columns[0]
    ]
    header = [f"`default`, {len(content['draws'])} draws: gain of the best setting by hindsight"]
    return markdown([*header, "mean log (95 %)", "median", "`total_steps` told", "median"], rows)


def bases(content: Mapping[str, Any]) -> str:
    """The table of `benchmarks.default_bases`: means and their intervals, by what is noisy."""
    groups = [
        draws for told in by_horizon(content["draws"]).values() for draws in kinds(told).values()
    ]
    rows = [
        [variant, *(_gain(summary(column(draws, variant)))[0] if draws else "" for draws in groups)]
        for variant in content["variants"][1:]
    ]
    header = [f"`default`, {len(content['draws'])} draws: log of final loss over that as it ships"]
    names = [*kinds([])]
    told = [f"`total_steps` told: {name}" for name in names]
    return markdown([*header, *names, *told], rows)


def half_state(content: Mapping[str, Any]) -> str:
    """The table of `benchmarks.half_state`: where runs end, against those in float32."""
    rows = []
    for trial in content["half_state"]:
        cells = []
        for facts in trial["against"].values():
            low, high = (f"{value:.3f}" for value in facts["interval_95"])
            cells += [f"{facts['mean']:.3f} ({low} to {high})", f"{facts['part_by']:.2%}"]
        rows.append([f"`{trial['rule']}`: {trial['title']}", str(trial["runs"]), *cells])
    header = ["Final loss over that with the state in float32", "runs"]
    for name in content["half_state"][0]["against"]:
        header += [name, "a run parts by (median)"]
    return markdown(header, rows)


def _gain(facts: Mapping[str, Any]) -> tuple[str, str]:
    # Adding 0 takes the sign off a zero.
    low, high, mean, median = (
        f"{round(value, 2) + 0.0:.2f}"
        for value in (*facts["interval_95"], facts["mean"], facts["median"])
    )
    return f"{mean} ({low} to {high})", median


def of_draws(content: Mapping[str, Any]) -> str:
    """One of the two on draws of training families."""
    return (bases if "variants" in content else headroom)(content)


def table_of(content: Mapping[str, Any]) -> str:
    """Of one result file; empty if it has none."""
    for key, table in TABLES.items():
        if key in content:
            return table(content)
    return ""


TABLES = {
    "cases": comparison,
    "networks": digits,
    "summary": generalization,
    "parameters": real_scale,
    "headline": engine_tables.throughput,
    "bowl": engine_tables.estimators,
    "kills": engine_tables.faults,
    "lengths": short_runs,
    "two_threads": step_time,
    "draws": of_draws,
    "half_state": half_state,
}


def render(folder: Path = RESULTS, level: int = 2) -> str:
    """The tables of all files, the headlines first, the rest by name.

    Each has a heading of that level, the name of its file in words.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.json"))}
    wanted = dict.fromkeys([*HEADLINES, *files])
    blocks = []
    for path in (files[name] for name in wanted if name in files):
        content = json.loads(path.read_text(encoding="utf-8"))
        table = table_of(content)
        if table:
            title = f"{'#' * level} {path.stem.replace('_', ' ').capitalize()}"
            blocks.append(f"{title}\n\n{table}\n\n{provenance(content, path.name)}")
    return "\n\n".join(blocks) or NOTHING


def for_the_readme(folder: Path = RESULTS) -> str:
    """The overview and where its numbers come from; `NOTHING` where a file of it is missing."""
    table = overview(folder)
    if not table:
        return NOTHING
    paths = [folder / f"{name}.json" for name in FILES]
    sources = [
        provenance(json.loads(path.read_text(encoding="utf-8")), path.name) for path in paths
    ]
    return "\n\n".join([table, "<br>".join(sources)])


def page() -> str:
    """All tables as a page in the folder of their files."""
    return f"{HEAD}\n{render().replace('](benchmarks/results/', '](')}\n"


def replaced(readme: str, tables: str) -> str:
    """The README with `tables` between the marks.

    Raises:
        ValueError: the marks are not there once each, in order.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"README.md must hold {BEGIN!r} and then {END!r}, once each")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    old = README.read_text(encoding="utf-8")
    written = {README: replaced(old, for_the_readme()), ALL: page()}
    for path, new in written.items():
        if not check:
            path.write_text(new, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != new:
            sys.exit(f"{path} is not up to date with the results beside it: run `make readme`")


if __name__ == "__main__":
    main()
