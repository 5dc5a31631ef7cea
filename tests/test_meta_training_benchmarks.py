"""The benchmarks of meta-training measure what they say, and their committed results are whole."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch

from benchmarks import estimators, estimators_figure, fault_test, throughput_figure
from benchmarks import meta_training_throughput as throughput
from benchmarks.bowl import Bowl, Formula
from benchmarks.eager_unroll import EagerRule, EagerRun
from benchmarks.readme_tables import table_of
from benchmarks.results import RESULTS
from learned_optim import kernels, meta_training
from learned_optim.meta_training import checkpoint
from learned_optim.meta_training.meta_loss import Sum
from learned_optim.rules import L2L
from learned_optim.tasks import MnistMLP, Quadratic

SMALL = L2L(layers=2, hidden=3)
DIGITS = MnistMLP(dataset="digits", hidden=3, batch_size=8)


def case(estimator, **changes):
    return dataclasses.replace(
        throughput.Case("small", DIGITS, estimator, steps=3, rounds=1), **changes
    )


def committed(name):
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("estimator", ["tbptt", "tbptt_second"])
def test_the_eager_loop_and_the_package_give_the_same_losses_and_meta_gradients(estimator):
    plain = throughput.agreement(case(estimator))
    assert plain["meta_loss"] < 1e-6
    assert plain["meta_gradient"] < 1e-4
    with throughput.without_kernels():
        assert throughput.agreement(case(estimator))["meta_gradient"] < 1e-4


def test_the_two_meta_gradients_differ_from_each_other():
    rule = L2L(layers=1, hidden=3, preprocess="none", scale=1.0)
    weights = rule.init_weights(torch.Generator().manual_seed(0))
    weights["head.w"] *= 30
    grads = []
    for second in (False, True):
        run = EagerRun(EagerRule(rule, weights), Quadratic().sample(torch.Generator()), 0)
        run.backpropagate(4, second_derivatives=second)
        grads.append(run.rule.gradients()["head.w"])
    assert not torch.allclose(grads[0], grads[1], rtol=1e-3)


def test_the_eager_loop_without_a_graph_runs_through_the_same_losses():
    weights = SMALL.init_weights(torch.Generator().manual_seed(0))
    task = DIGITS.sample(torch.Generator())
    with_graph, without = (EagerRun(EagerRule(SMALL, weights), task, 5) for _ in "ab")
    for _ in "two windows":
        assert without.run(2) == pytest.approx(with_graph.backpropagate(2), rel=1e-5)


def test_an_eager_pair_makes_the_inner_steps_that_the_estimator_counts():
    pairs = case("nres", runs=2)
    rule, weights = throughput.rule_and_weights()
    estimate = throughput.make_estimator(pairs).estimate(
        rule, weights, throughput.make_worker(pairs), Sum()
    )
    losses: Any = throughput.eager_action(pairs, rule, weights)()
    assert sum(map(len, losses)) == estimate.inner_steps == pairs.steps * pairs.copies == 12


def test_the_kernels_are_off_where_plain_torch_is_timed():
    before = kernels.available()
    with throughput.without_kernels():
        assert not kernels.available()
    assert kernels.available() == before


def test_every_contender_of_a_case_gets_a_row_and_a_ratio():
    rows = throughput.measure(case("nres", runs=2))
    assert [row["contender"] for row in rows] == throughput.contenders(case("nres"))
    assert all(row["ms"] >= row["fastest_ms"] > 0 for row in rows)
    assert rows[0]["times_faster"] == 1
    assert {row["optimizees"] for row in rows} == {4}


def test_random_images_stand_in_for_mnist(monkeypatch):
    def absent(name):
        raise throughput.datasets.DataUnavailable(name)

    monkeypatch.setattr(throughput.datasets, "load", absent)
    family = throughput.mnist_family()
    task = family().sample(torch.Generator())
    batch = task.batch(torch.Generator().manual_seed(0))
    assert batch["x"].shape == (128, 784)
    assert batch["y"].shape == (128,)
    assert task.loss(task.init(torch.Generator())[0], batch).isfinite()


def test_the_formula_of_the_bowl_is_its_unrolled_meta_loss():
    formula = Formula(0.1, 5)
    log_lr = torch.tensor(math.log(0.1), dtype=torch.float64, requires_grad=True)
    theta, total = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for _ in range(5):
        theta = theta - log_lr.exp() * theta
        total = total + Bowl().sample(torch.Generator()).loss({"theta": theta.view(1)}, {})
    total.backward()
    assert log_lr.grad is not None
    assert formula.gradient() == pytest.approx(float(log_lr.grad), rel=1e-12)
    assert formula.smoothed_gradient(1e-3) == pytest.approx(formula.gradient(), rel=1e-4)
    assert formula.smoothed_gradient(0.5) != pytest.approx(formula.gradient(), rel=1e-2)


def test_bias_and_variance_are_those_of_the_sample():
    generator = torch.Generator().manual_seed(0)
    found = 3.0 + 2.0 * torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    truth = estimators.Reference(torch.tensor([2.0], dtype=torch.float64))
    row = estimators.judge(found, seconds=0.5, runs=4, reference=truth)
    assert row["bias"] == pytest.approx(0.5, rel=0.1)
    assert row["variance"] == pytest.approx(4.0, rel=0.1)  # 2^2 / 2^2, times 4 runs
    assert row["variance_second"] == pytest.approx(0.5 * row["variance"])
    assert row["error_after_second"] > row["error_after_minute"] > row["bias"]
    unbiased = estimators.judge(found - 1.0, 0.5, 4, truth)
    assert unbiased["bias"] < unbiased["relative_error"] + unbiased["standard_error"] < 0.05


def test_the_whole_page_of_estimators_is_made(tmp_path):
    size = estimators.Size(workers=4, runs=4, reference=2, outer_steps=2)
    content = {**estimators.run(size)}
    assert list(content["bowl"]["rows"]) == [
        *("tbptt 12, 2nd", "tbptt 12", "tbptt 3, 2nd", "tbptt 3", "tbptt 1"),
        *("es", "pes 3", "nres 3"),
    ]
    assert content["bowl"]["rows"]["tbptt 12, 2nd"]["bias"] < 1e-5
    assert content["bowl"]["rows"]["tbptt 3, 2nd"]["bias"] > 0.3
    assert len(estimators.table(content).splitlines()) == 18
    estimators_figure.draw(content, tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


class Finished:
    """A process that has ended."""

    def __init__(self, recipe, folder):
        meta_training.run(recipe, output=folder, progress=False)

    def wait(self, timeout=None):
        return 0


def test_two_whole_runs_of_the_fault_test_are_bit_equal_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(fault_test, "launch", Finished)
    content = fault_test.run(fault_test.Plan(kills=0, steps=4), tmp_path, report=False)
    assert content["runs_bit_equal"] == content["runs"] == 1
    assert content["leaves_compared"] > 50
    path = tmp_path / "1" / "checkpoint.pt"
    state = checkpoint.load(path)
    state["workers"][1]["in_flight"]["carry"]["theta"][0, 0] += 1e-6
    checkpoint.save(path, state)
    assert fault_test.differing(tmp_path / "1", tmp_path / "whole") == [
        "/workers/1/in_flight/carry/theta"
    ]


def test_a_process_gets_its_kill_unless_it_ends_before(tmp_path, monkeypatch):
    def python(code):
        command = [sys.executable, "-S", "-c", code]
        monkeypatch.setattr(fault_test, "launch", lambda *_: subprocess.Popen(command))

    python("import time; time.sleep(600)")
    found = fault_test.strike(tmp_path / "r.toml", tmp_path, "starting", 0.05)
    assert found == {"before": 0, "after": 0, "checkpoint_age": None, "torn": 0}
    python("")
    assert fault_test.strike(tmp_path / "r.toml", tmp_path, "training", 60.0) is None
    python("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="status 3"):
        fault_test.strike(tmp_path / "r.toml", tmp_path, "starting", 60.0)


def test_kills_spread_over_what_is_left_and_hit_the_start_too():
    plan = fault_test.Plan(kills=20, steps=1000)
    pace = fault_test.Pace(plan, unbroken=10.0)
    drawn = [pace.draw(number, done=50 * number) for number in range(1, 21)]
    assert [moment for moment, _ in drawn].count("starting") == 5
    longest = fault_test.SPREAD * 10.0 / 19
    assert all(0 <= s <= longest for moment, s in drawn if moment == "training")
    pace.see(fault_test.Kill(1, 1, "training", 2.0, 0, 20, 0.1, 0), lasted=5.0)
    assert pace.starting == 3.0
    assert max(pace.draw(1, 0)[1] for _ in range(200)) > 5.0  # ten times slower than it was


def test_the_fault_test_sees_a_single_bit(tmp_path):
    tree = {"weights": {"a": torch.ones(3)}, "seconds": 1.0, "list": [1, {"b": torch.zeros(2)}]}
    same = fault_test.leaves(tree)
    assert set(same) == {"/weights/a", "/list/0", "/list/1/b"}
    assert fault_test.leaves({**tree, "seconds": 2.0}) == same
    tree["weights"]["a"][1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert fault_test.leaves(tree) != same


def test_the_committed_throughput_has_what_a_table_needs(tmp_path):
    content = committed("meta_training_throughput.json")
    assert {"command", "versions", "hardware", "seed", "images", "targets"} <= set(content)
    for name, difference in content["agreement"].items():
        assert difference["meta_gradient"] < 1e-3, name
    for group in ("headline", "runs", "coordinates"):
        for row in content[group]:
            assert row["ms"] > 0
            assert {"task", "estimator", "contender", "optimizees", "coordinates"} <= set(row)
    told = {(row["task"], row["estimator"], row["contender"]) for row in content["headline"]}
    assert {
        (task, estimator, contender)
        for task in ("784-20-10", "64-32-10")
        for estimator in throughput.ESTIMATORS
        for contender in ("eager", "torch")
    } <= told
    throughput_figure.draw(content, tmp_path / "throughput.png")
    assert (tmp_path / "throughput.png").stat().st_size > 10_000


def test_the_committed_page_of_estimators_has_what_a_table_needs():
    content = committed("estimators.json")
    assert {"command", "versions", "hardware", "seed", "bowl", "quadratic"} <= set(content)
    assert {"exact", "smoothed"} <= set(content["bowl"])
    keys = {"cosine", "relative_error", "bias", "variance", "cpu_ms_per_episode"}
    for group in ("bowl", "quadratic"):
        for row in content[group]["rows"].values():
            assert keys <= set(row)


def test_the_committed_fault_test_counts_twenty_kills_and_no_difference():
    content = committed("fault_test.json")
    assert len(content["kills"]) == 20
    assert content["runs_bit_equal"] == content["runs"] > 0
    assert content["differing"] == [[]] * content["runs"]
    assert {kill["moment"] for kill in content["kills"]} == {"starting", "training"}
    assert any(kill["before"] > 0 for kill in content["kills"])


def test_each_committed_result_of_the_engine_has_its_table():
    tables = {
        name: table_of(committed(f"{name}.json"))
        for name in ("meta_training_throughput", "estimators", "fault_test")
    }
    content = committed("meta_training_throughput.json")
    row = next(row for row in content["headline"] if row["contender"] == "torch")
    assert f"{row['ms']:.2f} ({row['times_faster']:.1f}x)" in tables["meta_training_throughput"]
    assert len(tables["meta_training_throughput"].splitlines()) == 2 + 6
    assert tables["estimators"].count("none seen") >= 3
    # How many whole runs 20 kills make depends on the machine.
    runs = committed("fault_test.json")["runs"]
    assert f"| 20 | 5 | {runs} of {runs} |" in tables["fault_test"]
