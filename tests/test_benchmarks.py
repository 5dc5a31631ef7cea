"""The benchmarks measure what they say: baselines, tuning, statistics, the learned rule's runs."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from benchmarks import learned as learned_module
from benchmarks import step_time_figure, tuning
from benchmarks.baselines import BASELINES, Sweep
from benchmarks.learned import Learned, find_weights, load_rules
from benchmarks.paper import mnist, quadratic, report
from benchmarks.paper.comparison import Case, compare
from benchmarks.plotting import loss_curves
from benchmarks.results import RESULTS, write_json
from benchmarks.runs import Problem, dataset_loss, run
from benchmarks.statistics import curve, ratio, summary
from benchmarks.tuning import Grid, choose, tuned
from learned_optim.meta_training.seeding import derive_seed
from learned_optim.meta_training.unroll import Runs, advance, begin
from learned_optim.optimizer import LearnedOptimizer
from learned_optim.rules import L2L, Coordinates, LearnableSGD
from learned_optim.tasks import MnistMLP, Quadratic
from learned_optim.weights import in_memory, save_folder

GRID = Grid(dict.fromkeys(BASELINES, (-3.0, -2.0)), per_decade=4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(steps=5, runs=3, block=2, dim=4, stream="test"):
    return Problem(Quadratic(dim=dim).sample(generator()), runs, steps, stream, block)


def small_case(**changes):
    case = Case("small", "Small", Quadratic(dim=3).sample(generator()), 6, GRID, 8, 8, 4, 8)
    return dataclasses.replace(case, **changes)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of results of this test's own."""
    monkeypatch.setattr(tuning, "RESULTS", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def rule():
    config = L2L(hidden=4)
    return in_memory(config, config.init_weights(generator(3)), name="small")


class CoupledSGD(LearnableSGD):
    """Not coordinatewise: the step is divided by the norm of the tensor's gradient."""

    name = "coupled_sgd"
    summary_size = 1

    def summarize(self, coords, state):
        return coords.grad.square().sum(-1, keepdim=True)

    def control(self, sums, facts, state, clock, weights):
        return sums.sqrt(), state

    def update(self, coords, state, signals, weights):
        step, state = super().update(coords, state, signals, weights)
        return step / (1 + signals.squeeze(-2)), state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_equals_its_torch_class_at_every_rate_and_in_every_run(name, dtype):
    runs, rates, steps = 2, [1e-3, 0.03, 0.5], 25
    matrices = torch.randn(runs, 6, 6, generator=generator(1), dtype=dtype)
    start = torch.randn(runs, 6, generator=generator(2), dtype=dtype)
    params = {"theta": start.unsqueeze(1).repeat(1, len(rates), 1)}
    sweep = Sweep({name: rates})
    for _ in range(steps):
        product = torch.einsum("rij,rkj->rki", matrices, params["theta"])
        sweep.step(params, {"theta": torch.tanh(product) + 0.1 * params["theta"]})

    baseline = BASELINES[name]
    for row in range(runs):
        for k, rate in enumerate(rates):
            theta = start[row].clone().requires_grad_()
            options: dict[str, Any] = {"lr": rate, **baseline.options}
            optimizer = baseline.torch_class([theta], **options)
            for _ in range(steps):
                with torch.no_grad():
                    theta.grad = torch.tanh(matrices[row] @ theta) + 0.1 * theta
                optimizer.step()
            tolerance = 1e-4 if dtype == torch.float32 else 1e-10
            torch.testing.assert_close(
                params["theta"][row, k], theta.detach(), rtol=tolerance, atol=tolerance
            )


def test_a_sweep_of_several_baselines_equals_each_alone():
    rates = {"sgd": [0.01], "adam": [0.01, 0.1], "nag": [0.003]}
    together = run(problem(), lambda: Sweep(rates)).losses
    alone = [run(problem(), lambda pair=pair: Sweep(dict([pair]))) for pair in rates.items()]
    torch.testing.assert_close(together, torch.cat([each.losses for each in alone], dim=1))


def test_runs_do_not_depend_on_how_they_are_cut_into_blocks():
    losses = [run(problem(block=b), lambda: Sweep({"adam": [0.1]})).losses for b in (1, 2, 3)]
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])
    assert losses[0].shape == (3, 1, 6)


def test_a_run_equals_a_plain_training_loop_on_the_same_minibatches():
    task = MnistMLP(dataset="digits", hidden=5, batch_size=16).sample(generator())
    measured = run(
        Problem(task, 2, 4, "test", 2),
        lambda: Sweep({"adam": [0.05]}),
        measure=dataset_loss(task, {"all": task.full("test")}, chunk=100),
        measure_at=(4,),
    )
    source = generator(derive_seed("benchmark", "test", 1))
    params = {key: value.requires_grad_() for key, value in task.init(source)[0].items()}
    optimizer = torch.optim.Adam(params.values(), lr=0.05)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = task.loss(params, task.batch(source))
        loss.backward()
        losses.append(loss.detach())
        optimizer.step()
    with torch.no_grad():
        losses.append(task.loss(params, task.batch(source)))
        whole = task.loss(params, task.full("test"))
    torch.testing.assert_close(measured.losses[1, 0], torch.stack(losses), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(measured.measured[4]["all"][1, 0], whole, rtol=1e-4, atol=1e-5)


def test_validation_and_test_runs_are_different_functions():
    first, second = (
        run(problem(steps=0, stream=stream), lambda: Sweep({"sgd": [0.1]})).losses.flatten()
        for stream in ("validation", "test")
    )
    assert not set(first.tolist()) & set(second.tolist())


@pytest.mark.parametrize("coordinatewise", [True, False])
def test_learned_runs_side_by_side_equal_learned_optimizer_on_each_alone(rule, coordinatewise):
    if not coordinatewise:
        config = CoupledSGD(learning_rate=0.05)
        rule = in_memory(config, config.init_weights(generator()), name="coupled")
    assert rule.rule.coordinatewise == coordinatewise
    task = MnistMLP(dataset="digits", hidden=5, batch_size=16, init_std=0.5).sample(generator())
    together = run(Problem(task, 3, 6, "test", 3), lambda: Learned(rule)).losses
    for row in range(3):
        source = generator(derive_seed("benchmark", "test", row))
        params = {key: value.requires_grad_() for key, value in task.init(source)[0].items()}
        optimizer = LearnedOptimizer(params.values(), rule=rule)
        for step in range(6):
            optimizer.zero_grad()
            loss = task.loss(params, task.batch(source))
            loss.backward()
            torch.testing.assert_close(together[row, 0, step], loss.detach(), rtol=1e-5, atol=1e-6)
            optimizer.step()


@pytest.mark.filterwarnings("ignore:a gradient holds NaN or infinity")
def test_a_learned_run_that_diverges_leaves_the_others_alone(rule):
    params = {"theta": torch.ones(2, 1, 3)}
    stepper = Learned(rule)
    stepper.step(params, {"theta": torch.tensor([[[1.0, 2, 3]], [[math.nan, 2, 3]]])})
    assert params["theta"][1].eq(1).all()
    assert params["theta"][0].ne(1).all()


def test_learned_runs_equal_the_unroll_of_meta_training(rule):
    task = Quadratic(dim=5).sample(generator())
    losses = run(Problem(task, 2, 10, "test", 2), lambda: Learned(rule)).losses[:, 0]
    runs = Runs(task, [derive_seed("benchmark", "test", row) for row in range(2)])
    layout, carry = begin(rule.rule, runs)
    for step in range(11):
        torch.testing.assert_close(losses[:, step], carry.loss, rtol=1e-5, atol=1e-6)
        carry = advance(rule.rule, rule.weights, runs, layout, carry)


def test_the_coupled_rule_of_these_tests_really_couples():
    config = CoupledSGD(learning_rate=1.0)
    assert not config.coordinatewise
    grad = torch.tensor([3.0, 4.0])
    sums = config.summarize(Coordinates(grad, grad), {})
    assert sums.tolist() == [25.0]


def test_a_grid_has_its_rates_in_every_decade():
    rates = GRID.rates("adam")
    assert rates == [1e-3, 0.00177828, 0.00316228, 0.00562341, 0.01]


def test_the_rate_with_the_least_mean_is_chosen_and_an_edge_is_marked():
    start = torch.ones(2, 3)
    inner = choose([1.0, 2.0, 3.0], start, torch.tensor([[0.5, 0.1, 0.4], [0.5, 0.3, 0.4]]))
    assert (inner["rate"], inner["at_edge"]) == (2.0, False)
    assert inner["validation_mean"] == pytest.approx(0.2)
    edge = choose([1.0, 2.0, 3.0], start, torch.tensor([[0.5, 0.4, 0.1], [0.5, 0.4, 0.1]]))
    assert (edge["rate"], edge["at_edge"]) == (3.0, True)


@pytest.mark.parametrize("bad", [2.0, math.inf, math.nan])
def test_a_rate_at_which_one_run_diverges_is_not_chosen_however_good_its_mean(bad):
    start, final = torch.ones(100, 2), torch.full((100, 2), 0.5)
    final[:, 1] = 0.01
    final[7, 1] = bad
    chosen = choose([0.1, 0.2], start, final)
    assert chosen["rate"] == 0.1
    assert chosen["diverged_runs"] == [0, 1]


def test_a_grid_on_which_everything_diverges_is_an_error():
    with pytest.raises(ValueError, match=r"every learning rate in \[0.1, 0.2\] diverges"):
        choose([0.1, 0.2], torch.ones(2, 2), torch.full((2, 2), 9.0))


def test_a_margin_keeps_away_from_rates_that_diverge():
    rates, start = [0.1, 0.2, 0.4, 0.8], torch.ones(2, 4)
    final = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 9.0]])
    assert choose(rates, start, final)["rate"] == 0.4
    assert choose(rates, start, final, margin=1)["rate"] == 0.2
    with pytest.raises(ValueError, match="diverges"):
        choose(rates, start, final, margin=3)


def test_tuned_rates_are_kept_until_the_problem_changes_or_they_are_asked_for(results, monkeypatch):
    calls = []

    def count(problem, grid, label):
        calls.append(problem.steps)
        return {"sgd": {"rate": float(len(calls))}}

    monkeypatch.setattr(tuning, "tune", count)
    assert tuned("p", problem(steps=5), GRID)["sgd"]["rate"] == 1.0
    assert tuned("p", problem(steps=5), GRID)["sgd"]["rate"] == 1.0
    assert tuned("p", problem(steps=6), GRID)["sgd"]["rate"] == 2.0
    assert tuned("p", problem(steps=6), GRID, retune=True)["sgd"]["rate"] == 3.0
    assert tuned("p", problem(steps=6), Grid(GRID.ranges, 8))["sgd"]["rate"] == 4.0
    saved = json.loads((results / "baselines/p.json").read_text())
    assert saved["versions"]["torch"] == torch.__version__
    assert {"command", "hardware", "validation", "tuned"} <= saved.keys()


@pytest.mark.parametrize("name", ["quadratic", *mnist.CASES])
def test_the_committed_rates_lie_inside_their_grid_and_diverge_nowhere(name):
    path = tuning.baseline_path(name)
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["validation"]["per_decade"] >= (8 if name == "quadratic" else 4)
    assert saved["tuned"].keys() == BASELINES.keys()
    for chosen in saved["tuned"].values():
        assert not chosen["at_edge"]
        assert chosen["diverged_runs"][chosen["grid"].index(chosen["rate"])] == 0


# A best rate on its grid's edge, and why that is no matter.
ON_THE_EDGE = {
    ("paper_cifar", "cifar_2", "adagrad"): "the two rates below it end at 0.32 and 0.38 for 0.28",
    (
        "paper_cifar",
        "cifar_10_long",
        "sgd",
    ): "its three lowest rates are within 0.2 % of each other, 5 % behind Adam",
}


@pytest.mark.parametrize("name", ["paper_cifar", "paper_neural_art"])
def test_the_rates_of_pictures_lie_inside_their_grid_and_diverge_nowhere(name):
    cases = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    for case, facts in cases.items():
        for key, chosen in facts["tuning"].items():
            assert chosen["at_edge"] == ((name, case, key) in ON_THE_EDGE), (case, key)
            assert chosen["diverged_runs"][chosen["grid"].index(chosen["rate"])] == 0
            assert facts["metrics"]["final"]["entries"][key]["mean"] is not None, (case, key)


def test_a_summary_has_the_mean_the_median_and_an_interval_of_the_right_width():
    values = torch.randn(400, generator=generator(1)) + 5
    facts = summary(values)
    assert facts["mean"] == pytest.approx(values.mean().item())
    assert facts["median"] == pytest.approx(values.sort().values[199].item())
    low, high = facts["interval_95"]
    # 1.96 standard errors on either side of the mean.
    assert (high - low) / 2 == pytest.approx(1.96 * values.std().item() / 20, rel=0.05)
    assert (high + low) / 2 == pytest.approx(facts["mean"], abs=0.01)
    assert summary(values) == facts


def test_a_ratio_of_paired_runs_has_the_interval_of_pairs():
    reference = 10 ** torch.randn(200, generator=generator(1))
    facts = ratio(0.5 * reference, reference)
    assert facts["mean"] == pytest.approx(0.5)
    assert facts["interval_95"] == pytest.approx([0.5, 0.5])


def test_a_curve_has_quartiles_at_every_step():
    rows = curve(torch.arange(5.0).unsqueeze(1) * torch.tensor([1.0, 10.0]))
    assert rows == {
        "mean": [2.0, 20.0],
        "median": [2.0, 20.0],
        "lower": [1.0, 10.0],
        "upper": [3.0, 30.0],
    }


def test_a_comparison_ranks_and_reports_table_figure_and_json(results, rule, tmp_path, capsys):
    case = small_case(paper={"learned": 0.3, "adam": 0.5})
    result = compare(case, {"learned": lambda: Learned(rule), "learned-1": lambda: Learned(rule)})
    final = result["metrics"]["final"]
    means = {name: final["entries"][name]["mean"] for name in BASELINES}
    assert final["best_baseline"] == min(means, key=means.__getitem__)
    assert final["best_of_papers"] not in ("momentum", "adagrad")
    expected = final["entries"]["learned"]["mean"] / means[final["best_baseline"]]
    assert final["entries"]["learned"]["ratio"]["mean"] == pytest.approx(expected)
    assert final["entries"]["learned-1"] == final["entries"]["learned"]
    assert result["entries"]["learned"]["paper"] == 0.3
    assert len(result["entries"]["adam"]["curve"]["median"]) == case.steps + 1

    write_json(tmp_path / "result.json", result)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    report.show(result)
    printed = capsys.readouterr().out
    assert "L2L (1)" in printed
    assert "Small, 6 steps: loss at the last step" in printed

    loss_curves([result, result], tmp_path / "figure.png", "caption")
    assert 10_000 < (tmp_path / "figure.png").stat().st_size < 200_000


@pytest.mark.filterwarnings("ignore:a gradient holds NaN or infinity")
def test_a_rule_that_diverges_is_reported_and_not_hidden(results, tmp_path, capsys):
    config = LearnableSGD(learning_rate=500.0)
    wild = in_memory(config, config.init_weights(generator()), name="wild")
    result = compare(small_case(steps=40), {"learned": lambda: Learned(wild)})
    write_json(tmp_path / "result.json", result)
    report.show(json.loads((tmp_path / "result.json").read_text()))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("L2L"))
    assert "diverged" in line
    loss_curves([json.loads((tmp_path / "result.json").read_text())], tmp_path / "x.png", "caption")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_json_has_none_for_what_is_not_finite_and_lists_on_one_line(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1.0, math.inf], "y": {"z": math.nan}, "s": "[ a ]"})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"x": [1.0, None], "y": {"z": None}, "s": "[ a ]"}
    assert '"x": [1.0, null]' in text
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_picture_of_what_a_step_costs_is_drawn_from_the_committed_results(tmp_path):
    content = json.loads((RESULTS / "step_time.json").read_text(encoding="utf-8"))
    step_time_figure.draw(content, tmp_path / "step_time.png")
    assert (tmp_path / "step_time.png").read_bytes().startswith(b"\x89PNG")


def test_all_meta_seeds_of_a_bundled_rule_are_found(rule, tmp_path, monkeypatch):
    monkeypatch.setattr(learned_module, "PRETRAINED", tmp_path)
    assert find_weights("small") == []
    for folder in ("small", "small/seeds/1", "small/seeds/2"):
        save_folder(tmp_path / folder, rule.rule, rule.weights, name="small")
    (tmp_path / "small/seeds/notes").mkdir()
    found = find_weights("small")
    assert [path.name for path in found] == ["small", "1", "2"]
    loaded = load_rules(found)
    assert list(loaded) == ["learned", "learned-1", "learned-2"]
    assert loaded["learned"].sha256 == rule.sha256


def test_missing_weights_are_said_and_a_wrong_folder_ends_with_an_error(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(learned_module, "PRETRAINED", tmp_path)
    assert report.rules(None, "small") == {}
    assert "meta-train pretrained/small/recipe.toml" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"error: .*nowhere"):
        report.rules([tmp_path / "nowhere"], "small")


def test_other_cases_of_the_same_weights_stay_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "case", lambda name, runs: name)
    monkeypatch.setattr(mnist, "compare", lambda case, makers, retune: {"case": case})
    monkeypatch.setattr(learned_module, "PRETRAINED", tmp_path)
    path = tmp_path / "paper_mnist.json"

    def cases(*arguments):
        parser = report.parser("", "none")
        parser.add_argument("--variants", action="store_true")
        mnist.measure(parser.parse_args(arguments), path)
        return list(json.loads(path.read_text())["cases"])

    assert cases() == ["mnist_base"]
    assert cases("--variants") == list(mnist.CASES)
    assert cases() == list(mnist.CASES)
    content = json.loads(path.read_text())
    for name in ("mnist_relu", "mnist_2_layers"):
        content["cases"][name]["weights_sha256"] = {"learned": "other"}
    del content["cases"]["mnist_40_hidden"]["weights_sha256"]
    write_json(path, content)
    assert cases() == ["mnist_base", "mnist_base_200"]


def test_the_cases_are_those_of_the_paper():
    assert (quadratic.case().steps, quadratic.case().test_runs) == (100, 1024)
    sizes = {name: (family, steps) for name, (_, family, steps) in mnist._CASES.items()}
    assert sizes["mnist_base"] == (MnistMLP(), 100)
    assert sizes["mnist_base_200"] == (MnistMLP(), 200)
    assert sizes["mnist_40_hidden"][0] == MnistMLP(hidden=40)
    assert sizes["mnist_2_layers"][0] == MnistMLP(layers=2)
    assert sizes["mnist_relu"][0] == MnistMLP(activation="relu")
