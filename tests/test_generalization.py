"""The held-out evaluation: its problems, its baselines, its loop, its scores, its tables."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

import pytest
import torch

from benchmarks import generalization
from benchmarks.general import entries, items, store
from benchmarks.general.entries import FURTHEST, best_of, beyond, tuned_entry, widened
from benchmarks.general.figure import draw
from benchmarks.general.grids import METHODS, MUON_QUINTICS, GridStepper, Method, muon_takes
from benchmarks.general.items import LESS, SPLITS, Item, chosen
from benchmarks.general.scores import (
    judge,
    late_rises,
    log_ratio,
    mean_loss,
    profile,
    speed,
    versus,
)
from benchmarks.general.steppers import Instances, Packaged, Together, Unrolled, learned
from benchmarks.general.store import MAIN
from benchmarks.general.training import (
    FLOOR,
    TEST_BATCHES,
    Outcome,
    _losses,
    _test_loss,
    summarize,
    train,
)
from benchmarks.readme_tables import table_of
from learned_optim import LearnedOptimizer
from learned_optim.matrices import orthogonalize
from learned_optim.meta_training.unroll import Runs
from learned_optim.tasks import CNN, IllConditionedQuadratic, MLPClassification
from learned_optim.tasks.splits import META_TEST, check_trainable

SMALL = MLPClassification(
    dataset="digits", depth=1, width=6, activation="tanh", layer_norm=False, batch_size=8
)


def small(steps: int = 12, name: str = "small") -> Item:
    return Item(name, SMALL, steps)


def outcome(final: list[list[float]], start: float = 1.0) -> Outcome:
    values = torch.tensor(final, dtype=torch.float64)
    return Outcome(
        torch.full((len(final),), start, dtype=torch.float64),
        values,
        None,
        torch.ones_like(values),
        values.unsqueeze(-1),
    )


def record(**finals: Sequence[float | None]) -> store.Record:
    entries = {
        key: {"final": final, "test": final, "rise": [1.0] * len(final), "curve": [[1.0]]}
        for key, final in finals.items()
    }
    return {"start": [1.0] * len(next(iter(finals.values()))), "entries": entries}


def test_problems_have_names_of_their_own_and_the_lists_share_no_family():
    for split, problems in SPLITS.items():
        names = [item.name for item in problems]
        least = {"fine_tuning": 8, "domains": 10}.get(split, 14)
        assert len(set(names)) == len(names) >= least, split
    for item in SPLITS["validation"]:
        check_trainable(item.family)
    for item in SPLITS["held_out"]:
        with pytest.raises(ValueError, match="held out"):
            check_trainable(item.family)


def test_every_held_out_family_is_among_the_problems():
    kinds = {
        (item.family.name, getattr(item.family, "dataset", None)) for item in SPLITS["held_out"]
    }
    expected = {(f.name, getattr(f, "dataset", None)) for f in META_TEST.values()}
    assert expected <= kinds


def test_a_part_of_a_list_can_be_named_and_an_unknown_name_is_refused():
    assert [item.name for item in chosen("validation", ["zero_start", "cnn_elu"])] == [
        "zero_start",
        "cnn_elu",
    ]
    with pytest.raises(ValueError, match="'resnet'"):
        chosen("validation", ["resnet"])


@pytest.mark.parametrize("name", METHODS)
def test_a_grid_equals_its_torch_classes_at_every_rate(name, monkeypatch):
    # torch's Muon rounds to bfloat16; with our iterations in its place the rest is compared.
    monkeypatch.setattr(
        "torch.optim._muon._zeropower_via_newtonschulz",
        lambda g, *_: orthogonalize(g, MUON_QUINTICS),
    )
    method = dataclasses.replace(METHODS[name], rates=(1e-3, 0.03))
    steps, source = 15, torch.Generator().manual_seed(0)
    shapes = {"conv.weight": (4, 3, 2, 2), "conv.bias": (4,), "head.weight": (5, 4)}
    start = {k: torch.randn(2, *s, generator=source).double() for k, s in shapes.items()}
    params = {k: v.unsqueeze(1).repeat(1, 2, *(1,) * (v.dim() - 1)) for k, v in start.items()}
    stepper = GridStepper({name: method}, steps)
    for step in range(steps):
        stepper.step(params, {k: (v + 0.1 * step).sin() for k, v in params.items()})
    for row in range(2):
        for copy, rate in enumerate(method.rates):
            expected = by_torch(name, method, {k: v[row] for k, v in start.items()}, rate, steps)
            for key, value in expected.items():
                torch.testing.assert_close(params[key][row, copy], value, rtol=1e-9, atol=1e-9)


def by_torch(name: str, method: Method, start: dict, rate: float, steps: int) -> dict:
    """The same by torch.optim, kernels flattened for Muon."""
    flat = name == "muon_cosine"
    params = {
        k: (v.flatten(1) if flat and v.dim() > 1 else v).clone().requires_grad_()
        for k, v in start.items()
    }
    taken = muon_takes({k: p.shape for k, p in params.items()}) if flat else set()
    hidden = [p for k, p in params.items() if k in taken]
    rest = [p for p in params.values() if all(p is not other for other in hidden)]
    if name == "momentum_cosine":
        optimizers: list = [torch.optim.SGD(rest, lr=rate, momentum=0.9)]
    else:
        optimizers = [torch.optim.AdamW(rest, lr=rate, weight_decay=method.decay)]
    if hidden:
        muon = torch.optim.Muon(
            hidden, lr=rate, weight_decay=method.decay, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append(muon)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR
    schedules = [cosine(o, steps) for o in optimizers] if method.cosine else []
    for step in range(steps):
        for value in params.values():
            value.grad = (value.detach() + 0.1 * step).sin()
        for mover in (*optimizers, *schedules):
            mover.step()
    return {k: v.detach().view_as(start[k]) for k, v in params.items()}


def test_our_iterations_end_where_those_of_torchs_muon_do():
    from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, _zeropower_via_newtonschulz

    matrix = torch.randn(12, 30, generator=torch.Generator().manual_seed(0))
    theirs = _zeropower_via_newtonschulz(matrix, (DEFAULT_A, DEFAULT_B, DEFAULT_C), 5, 1e-7)
    # bfloat16 has three digits.
    found = orthogonalize(matrix, MUON_QUINTICS)
    torch.testing.assert_close(found, theirs.float(), rtol=0, atol=0.02)


def test_muon_takes_matrices_and_kernels_but_no_embedding_output_layer_or_vector():
    shapes = {
        "embedding": (20, 8),
        "position": (5, 8),
        "conv0.weight": (8, 3, 3, 3),
        "layer0.weight": (8, 8),
        "layer0.bias": (8,),
        "norm.weight": (8,),
        "layer1.weight": (1, 8),
        "layer2.weight": (4, 8),
        "layer2.bias": (4,),
    }
    assert muon_takes(shapes) == {"conv0.weight", "layer0.weight"}
    assert muon_takes({"embedding": (9, 4), "context": (9, 4)}) == set()
    # What is no network has no layers.
    assert muon_takes({"left": (9, 4), "right": (8, 4)}) == {"left", "right"}


def test_only_what_is_absent_is_run(own_split, monkeypatch):
    item = small()
    path = store.cache_path("validation", item)
    first = store.baselines("validation", item, progress=False)["entries"]
    record = store.read(path)
    del record["entries"]["muon_cosine"]
    path.write_text(json.dumps(record))
    copies, real = [], store.train

    def counted(item, make, label):
        copies.append(make().copies)
        return real(item, make, label)

    monkeypatch.setattr(store, "train", counted)
    again = store.baselines("validation", item, progress=False)["entries"]
    assert copies == [len(METHODS["muon_cosine"].rates)]
    assert again["muon_cosine"]["rate"] == first["muon_cosine"]["rate"]
    assert again["adam"] == first["adam"]


def test_a_run_of_torchs_adam_is_that_of_the_grid_and_test_losses_are_those_of_the_end():
    item = small()
    rates = dataclasses.replace(METHODS["adam"], rates=(0.01, 0.03))
    grid = train(item, lambda: GridStepper({"adam": rates}, item.steps))
    real = train(item, lambda: Instances([lambda p: torch.optim.Adam(p, lr=0.03)]))
    assert grid.test is not None
    assert real.test is not None
    torch.testing.assert_close(grid.final[:, 1], real.final[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grid.test[:, 1], real.test[:, 0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(grid.final[:, 0], real.final[:, 0], rtol=1e-3)


def test_test_batches_follow_from_seeds_that_no_training_has():
    item = small()
    assert not {*item.seeds()} & {*item.seeds("test")}
    drawn: dict[str, torch.Tensor] = {}
    for purpose in ("train", "test"):
        runs = Runs(item.task, item.seeds(), perturbations=1, split="test")
        runs.generators = [torch.Generator().manual_seed(seed) for seed in item.seeds(purpose)]
        runs.next_batch()  # which is looked at alone: whether there are any
        losses = [_losses(runs, runs.start(), runs.next_batch()) for _ in range(TEST_BATCHES)]
        drawn[purpose] = torch.stack(losses).double().mean(0)
    runs = Runs(item.task, item.seeds(), perturbations=1)
    found = _test_loss(item, runs, runs.start())
    assert found is not None
    assert torch.equal(found, drawn["test"])
    assert not torch.equal(found, drawn["train"])


@pytest.mark.parametrize("family", [SMALL, CNN(activation="relu", depth=2, width=4)])
@pytest.mark.parametrize("control", ["hand", "random"])
def test_the_fast_way_of_running_a_rule_is_the_optimizer_itself(family, control):
    rules = [store.controls()[control]]
    item = Item("agreement", family, 10)
    # Ten steps of a longer run: those of a short one are longer, and so is what halves lose.
    fast = train(item, lambda: Unrolled(rules, 300))
    real = train(item, lambda: learned(rules, 300))
    assert fast.test is not None
    assert real.test is not None
    # The optimizer keeps the coordinates' cells in halves.
    torch.testing.assert_close(fast.curve, real.curve, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fast.test, real.test, rtol=1e-3, atol=1e-4)
    # Told or not: two different runs. The third is the first until it is looked at.
    assert fast.curve[0, 2, 0] == pytest.approx(float(fast.curve[0, 0, 0]), rel=1e-4)
    assert len({f"{value:.5f}" for value in fast.final[0].tolist()}) == 3


@pytest.mark.parametrize(("control", "changes"), [("hand", True), ("fixed", False)])
def test_one_control_has_a_pace_that_nothing_changes(control, changes):
    param = torch.nn.Parameter(torch.ones(5))
    optimizer = LearnedOptimizer([param], store.controls()[control])
    for sign in [1.0] * 30 + [-40.0] * 5:  # gradients that agree, then turn and grow
        param.grad = torch.full((5,), sign)
        optimizer.step()
    pace = optimizer.state[param]["gauge"][1]
    assert (abs(float(pace)) > 0.01) == changes


def test_rules_of_two_configs_cannot_be_run_side_by_side():
    first = store.controls()["random"]  # of which nothing is left out
    other = dataclasses.replace(first, rule=dataclasses.replace(first.rule, hidden=2))
    with pytest.raises(ValueError, match="one config"):
        Unrolled([first, other], 5)


def test_steppers_side_by_side_are_each_as_alone():
    item = small()
    rates = {"adam": dataclasses.replace(METHODS["adam"], rates=(0.01, 0.03))}
    both = train(
        item,
        lambda: Together(
            [
                GridStepper(rates, item.steps),
                Instances([lambda p: torch.optim.SGD(p, lr=0.1)]),
            ]
        ),
    )
    alone = train(item, lambda: Instances([lambda p: torch.optim.SGD(p, lr=0.1)]))
    torch.testing.assert_close(both.final[:, 2:], alone.final, rtol=1e-5, atol=1e-6)


class Averaging(torch.optim.SGD):
    """Trains at one point and hands over another, as schedule-free optimizers do."""

    def train(self) -> None:
        for param in self.param_groups[0]["params"]:
            param.sub_(5.0)

    def eval(self) -> None:
        for param in self.param_groups[0]["params"]:
            param.add_(5.0)


def test_what_a_user_would_get_is_judged_and_not_where_the_gradient_is_taken():
    item = Item("averaging", IllConditionedQuadratic(dim=4, condition=10.0), 200)
    found = train(item, lambda: Instances([lambda p: Averaging(p, lr=0.1)]))
    # The gradient is taken 5 to the left, so that is where the minimum is found.
    assert float(found.curve[0, 0, -1]) > 2 * float(found.curve[0, 0, -10])


def test_a_late_rise_is_measured_against_the_lowest_window():
    losses = torch.cat([torch.linspace(2, 1, 91), torch.full((10,), 1.3)])
    found = summarize(losses.double().view(1, 1, -1), None)
    assert float(found.final) == pytest.approx(1.3)
    lowest = float(torch.linspace(2, 1, 91)[-10:].mean())
    assert float(found.rise) == pytest.approx(1.3 / lowest, rel=0.01)
    assert float(found.start) == 2.0


def test_a_solved_problem_does_not_rise():
    losses = torch.cat([torch.ones(60), torch.full((30,), 1e-12), torch.full((11,), 1e-9)])
    assert float(summarize(losses.double().view(1, 1, -1), None).rise) == pytest.approx(1, abs=1e-3)


def test_the_best_rate_is_that_of_the_least_geometric_mean_and_finite():
    assert best_of([[0.1, 0.1], [1e-3, 0.5], [1e-9, math.inf]], [1.0, 1.0]) == 1
    assert best_of([[0.1, 0.1], [1e-3, 0.5], [1e-9, None]], [1.0, 1.0]) == 1
    assert best_of([[0.1, 0.1]], [1.0, 1.0]) == 0


@pytest.mark.parametrize("lowest", [1e-5, 3e-4, 1e-2, 3.0, 10.0])
def test_beyond_an_end_of_its_grid_rates_are_tried_until_one_is_worse(lowest):
    """Losses of a method are a parabola of the logarithm of the rate."""
    method, tried = dataclasses.replace(METHODS["adam"], rates=(1e-3, 3e-3, 1e-2, 3e-2)), []

    def run(some: Method) -> Outcome:
        tried.extend(some.rates)
        return outcome([[0.1 + math.log(rate / lowest) ** 2 for rate in some.rates]])

    grid = tuned_entry(run(method), range(4), method, "adam")
    tried.clear()
    found = widened(grid, method, [1.0], run) if grid["at_edge"] else grid
    assert found["rate"] == pytest.approx(lowest)
    assert found["final"] == [pytest.approx(0.1, abs=1e-3)]
    assert not found["at_edge"]
    if grid["at_edge"]:
        assert found["rates"] == sorted({*method.rates, *tried})
        assert len(found["finals"]) == len(found["rates"])
        # One rate beyond the best, no more.
        assert tried[-1] == pytest.approx(beyond([lowest], above=lowest > 1e-2))
    else:
        assert not tried


def test_a_loss_that_falls_for_ever_ends_the_search_and_is_called_an_edge():
    method = dataclasses.replace(METHODS["adam"], rates=(0.1, 0.3, 1.0))

    def run(some: Method) -> Outcome:
        return outcome([[1 / rate for rate in some.rates]])

    found = widened(tuned_entry(run(method), range(3), method, "adam"), method, [1.0], run)
    assert (found["rate"], found["at_edge"]) == (1000.0, True)
    assert len(found["rates"]) == 3 + FURTHEST


@pytest.mark.parametrize("split", sorted(SPLITS))
def test_no_tuned_baseline_of_a_list_stands_at_an_edge(split):
    for item in SPLITS[split]:
        for key in store.RIVALS[split]:
            found = store.read(store.cache_path(split, item))["entries"][key]
            assert not found["at_edge"], f"{item.name}: {key} at {found['rate']}"


def test_ratios_are_clipped_and_floored_and_geometric():
    one = record(ours=[0.5, 0.5], adam=[1.0, 0.25])
    assert log_ratio(one, "ours", "adam") == pytest.approx(0.0, abs=1e-4)
    solved = record(ours=[1e-20], adam=[1e-9])
    expected = math.log(FLOOR / (FLOOR + 1e-9))
    assert log_ratio(solved, "ours", "adam") == pytest.approx(expected)
    far = record(ours=[1e-4], adam=[1.0])
    assert log_ratio(far, "ours", "adam") == pytest.approx(-math.log(10))
    diverged = record(ours=[None], adam=[1.0])
    assert log_ratio(diverged, "ours", "adam") == pytest.approx(math.log(10))
    assert mean_loss(diverged["entries"]["ours"]) is None
    untested = record(ours=[1.0], adam=[1.0])
    untested["entries"]["ours"]["test"] = None
    assert log_ratio(untested, "ours", "adam", "test") is None


def test_a_comparison_has_mean_interval_and_wins_over_problems():
    records = {str(k): record(ours=[0.5], adam=[1.0]) for k in range(3)}
    records["lost"] = record(ours=[2.0], adam=[1.0])
    facts = versus(records, "ours", "adam")
    assert facts["ratio"] == pytest.approx(0.5**0.5, rel=1e-3)
    assert facts["wins"] == 0.75
    low, high = facts["interval_95"]
    assert 0.49 < low < facts["ratio"] < high < 2.01
    assert versus({"even": record(ours=[1.0], adam=[1.0])}, "ours", "adam")["wins"] == 0


def test_the_speed_is_the_first_point_of_the_curve_at_tuned_adams_end():
    one = record(ours=[0.1, 0.1], adam=[0.5, 0.05])
    one["entries"]["ours"]["curve"] = [[1.0, 0.4, 0.2, 0.1], [1.0, 0.4, None, 0.1]]
    assert speed(one, "ours") == [0.5, math.inf]


def test_parts_of_a_list_leave_out_what_they_say():
    rivals = {key: [1.0] for key in MAIN}
    records = {
        name: record(rule=[loss], rule_told=[loss], rule_mean=[loss], **rivals)
        for name, loss in (("a", 0.5), ("b", 2.0))
    }
    found = generalization.judge_parts(records, {"without b": ("b",)})
    assert found["without b"]["rule"]["adam"]["ratio"] == pytest.approx(0.5, rel=1e-4)
    assert found["without b"]["rule_told"]["muon_cosine"]["problems"] == 1
    absent = LESS["held_out"]["without these and MNIST"]
    assert {name for name in absent if "mnist" in name} == {
        item.name for item in SPLITS["held_out"] if "'mnist'" in repr(vars(item.task))
    }


def test_a_profile_counts_problems_within_a_factor_of_the_best():
    records = {
        "a": record(x=[1.0], y=[2.0]),
        "b": record(x=[3.0], y=[1.0]),
    }
    assert profile(records, "x", ["x", "y"], 1.0) == 0.5
    assert profile(records, "x", ["x", "y"], 3.01) == 1.0
    assert profile(records, "y", ["x", "y"], 2.01) == 1.0


@pytest.fixture
def own_split(tmp_path, monkeypatch):
    """A list of two tiny problems, a folder of results, no packages, no rates beyond a grid."""
    problems = (small(), Item("bowl", IllConditionedQuadratic(dim=3, condition=5.0), 12))
    monkeypatch.setitem(SPLITS, "validation", problems)
    monkeypatch.setattr(store, "RESULTS", tmp_path)
    monkeypatch.setattr(store, "PACKAGED", {})
    monkeypatch.setattr(entries, "FURTHEST", 0)
    return tmp_path


def run_main(monkeypatch, *options: str) -> None:
    monkeypatch.setattr("sys.argv", ["generalization", "--split", "validation", *options])
    generalization.main()


def test_the_command_prints_its_tables_and_keeps_what_it_ran(own_split, monkeypatch, capsys):
    run_main(monkeypatch, "--output", str(own_split))
    printed = capsys.readouterr().out
    assert "AdamW + cosine, best rate" in printed
    path = own_split / "generalization_validation.json"
    content = json.loads(path.read_text())
    assert list(content["items"]) == ["small", "bowl"]
    assert content["summary"]["rule"]["versus"]["hand"]["problems"] == 2
    assert content["summary"]["rule"]["test_versus"]["adam"]["problems"] == 1
    assert path.with_suffix(".png").stat().st_size > 10_000
    # Nothing is run twice.
    assert "goes unnoticed" not in printed
    monkeypatch.setattr(store, "train", None)
    run_main(monkeypatch, "--output", str(own_split))
    assert "a change of code since then goes unnoticed: see --again" in capsys.readouterr().out
    assert json.loads(path.read_text()) == content


def test_a_split_may_try_its_baselines_at_rates_of_its_own(own_split, monkeypatch):
    slow = {key: dataclasses.replace(METHODS[key], rates=(1e-5, 1e-3)) for key in ("adam",)}
    item = small()
    first = store.baselines("validation", item, progress=False)["entries"]
    monkeypatch.setitem(store.RIVALS, "validation", slow)
    again = store.baselines("validation", item, progress=False)["entries"]
    assert first["adam"]["id"] != again["adam"]["id"]
    assert first["adam"]["id"] == store.identity("adam")
    assert len(again["adam"]["finals"]) == 2
    assert again["adam_default"]["final"] == first["adam_default"]["final"]


def test_rates_beyond_a_grid_are_kept_with_it(own_split, monkeypatch):
    monkeypatch.setattr(entries, "FURTHEST", 2)
    slow = {"adam": dataclasses.replace(METHODS["adam"], rates=(1e-5, 1e-4, 1e-3))}
    monkeypatch.setitem(store.RIVALS, "validation", slow)
    found = store.baselines("validation", small(), progress=False)["entries"]["adam"]
    assert found["rates"] == [1e-5, 1e-4, 1e-3, 3e-3, 1e-2]
    assert (found["rate"], found["at_edge"]) == (1e-2, True)
    wider = {"adam": dataclasses.replace(METHODS["adam"], rates=(*found["rates"], 1.0, 10.0))}
    monkeypatch.setitem(store.RIVALS, "validation", wider)
    again = store.baselines("validation", small(), progress=False)["entries"]["adam"]
    assert torch.allclose(torch.tensor(again["finals"][:5]), torch.tensor(found["finals"]))
    monkeypatch.setattr(store, "train", None)
    store.baselines("validation", small(), progress=False)


def test_gentle_steps_are_those_of_a_smaller_lr():
    found, start = store.controls("fine_tuning"), torch.randn(9, 5)
    ends = []
    for name, lr in (("gentle", 1.0), ("hand", store.GENTLE)):
        param = torch.nn.Parameter(start.clone())
        optimizer = LearnedOptimizer([param], rule=found[name], lr=lr)
        for _ in range(3):
            param.grad = param.detach().clone()
            optimizer.step()
        ends.append(param.detach())
    assert torch.allclose(*ends, atol=1e-6)
    assert not torch.allclose(ends[0], start, atol=1e-3)


def test_a_changed_problem_or_rule_is_run_again(own_split, monkeypatch):
    item = small()
    first = store.baselines("validation", item, progress=False)
    calls = []
    real = store.train

    def counted(*arguments):
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(store, "train", counted)
    store.baselines("validation", item, progress=False)
    assert not calls
    changed = store.baselines("validation", small(steps=14), progress=False)
    assert len(calls) == 2
    assert changed["entries"]["adam"]["final"] != first["entries"]["adam"]["final"]


def test_a_rule_with_the_weights_of_a_control_is_not_run_again(own_split, monkeypatch):
    item = small()
    hand = store.controls("validation")["hand"]
    assert store.from_control("validation", item, "rule", hand) == {}
    record = store.baselines("validation", item, progress=False)
    found = store.from_control("validation", item, "rule", hand)
    assert found == {"rule" + end: record["entries"]["hand" + end] for end in store.ENDS}
    monkeypatch.setattr(generalization, "run_rules", None)
    path = own_split / "out.json"
    content = generalization.evaluate("validation", [item], hand, path)
    assert content["items"]["small"]["entries"] == found


def test_again_runs_the_rule_whatever_the_file_and_the_controls_have(own_split, monkeypatch):
    item, hand, path = small(), store.controls("validation")["hand"], own_split / "out.json"
    store.baselines("validation", item, progress=False)
    kept = generalization.evaluate("validation", [item], hand, path)
    asked = []
    real = generalization.run_rules

    def counted(*arguments, **options):
        asked.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(generalization, "run_rules", counted)
    generalization.evaluate("validation", [item], hand, path)
    assert not asked
    content = generalization.evaluate("validation", [item], hand, path, again=True)
    assert len(asked) == 1
    assert content["items"]["small"]["entries"] == kept["items"]["small"]["entries"]


def test_baselines_can_be_filled_without_a_rule(own_split, monkeypatch, capsys):
    run_main(monkeypatch, "--baselines-only")
    assert "hand rule, no learning" in capsys.readouterr().out
    assert sorted(path.name for path in own_split.rglob("*.json")) == ["bowl.json", "small.json"]
    for path in own_split.rglob("*.json"):
        saved = json.loads(path.read_text())
        assert {"adam", "adam_default", "hand", "hand_told"} <= saved["entries"].keys()
        assert saved["versions"]["torch"] == torch.__version__


def test_a_run_that_is_not_finite_counts_as_diverged():
    records = {"a": record(ours=[None], adam=[1.0], ours_told=[1.0])}
    records["a"]["entries"]["ours"]["rise"] = [None]
    facts = judge(records, "ours")
    assert (facts["not_finite"], facts["late_rises"]) == (1, 1)
    assert math.isinf(facts["worst_rise"])
    assert facts["late_rises_of"] == {"adam": 0}


def test_a_rise_of_more_than_a_tenth_is_late():
    records = {"a": record(ours=[1.0] * 4), "b": record(ours=[1.0])}
    records["a"]["entries"]["ours"]["rise"] = [1.0, 1.05, 1.15, 1.5]
    facts = late_rises(records, "ours")
    assert facts == {"runs": 5, "not_finite": 0, "late_rises": 2, "worst_rise": 1.5}


def test_the_picture_is_drawn_with_what_there_is(tmp_path):
    keys = ("adam", "adamw_cosine", "muon_cosine", "rule", "rule_told")
    records = {str(k): record(**{key: [0.1 + k] for key in keys}) for k in range(3)}
    draw(records, "default", tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_an_optimizer_of_a_package_that_is_missing_says_how_to_get_it():
    missing = Packaged("Nobody's", "no_such_package", "Nothing")
    with pytest.raises(ModuleNotFoundError, match=r"learned-optim\[benchmarks\]"):
        missing.make([torch.zeros(1)])


def test_the_readme_gets_a_table_of_problems_that_nothing_was_chosen_by():
    records = {
        "a": record(
            rule=[0.5],
            rule_told=[0.25],
            rule_mean=[0.4],
            adam=[1.0],
            hand=[1.0],
            hand_told=[0.5],
            hand_mean=[0.8],
        ),
    }
    content = {
        "split": "held_out",
        "rule": {"name": "default"},
        "summary": {key: judge(records, key) for key in ("rule", "rule_told", "rule_mean")},
    }
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table_of(content).splitlines()
    ]
    ratios = ("0.5 (0.5 to 0.5)", "0.4 (0.4 to 0.4)", "0.25 (0.25 to 0.25)")
    assert rows[2] == ["Adam, best rate", *(cell for ratio in ratios for cell in (ratio, "100%"))]
    assert rows[3][0] == "hand rule, no learning"
    assert rows[3][3:] == ["0.5 (0.5 to 0.5)", "100%"] * 2
    assert rows[-1] == ["runs that rise late", "0 of 1", "", "-", "", "0 of 1", ""]
    assert table_of(content | {"split": "validation"}) == ""
    fine = table_of(content | {"split": "fine_tuning"}).splitlines()
    assert "on 1 networks that were trained before" in fine[0]
    assert fine[1:] == table_of(content).splitlines()[1:]


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_committed_belongs_to_the_problems_as_they_are(split):
    for item in items.SPLITS[split]:
        path = store.cache_path(split, item)
        if path.is_file():
            saved = json.loads(path.read_text())
            assert saved["problem"] == store.problem(item), path.name
