"""Trajectories, anatomy, failures and ablations of the paper, at a size that takes seconds."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from benchmarks import plotting
from benchmarks.baselines import Sweep
from benchmarks.paper import ablations, anatomy, failures, report, trajectories
from benchmarks.results import write_json
from learned_optim.meta_training.unroll import Runs, begin
from learned_optim.optimizer import LearnedOptimizer
from learned_optim.rules import L2L
from learned_optim.tasks import MnistMLP, Quadratic
from learned_optim.weights import in_memory


@pytest.fixture(scope="module")
def rule():
    config = L2L(hidden=4, layers=1)
    return in_memory(config, config.init_weights(torch.Generator().manual_seed(3)), name="small")


def written(content, path):
    """The content as it is read back, and the size of the picture beside it."""
    write_json(path, content)
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_surfaces_are_lowest_where_they_say():
    for surface in trajectories.SURFACES.values():
        lowest = torch.tensor(surface.lowest, dtype=torch.float64)
        assert float(surface.function(*lowest)) == pytest.approx(0, abs=1e-12)
        around = lowest + 0.1 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        assert (surface.function(*around.unbind(-1)) > 0).all()
    x, y = torch.tensor(3.0), torch.tensor(0.5)
    assert trajectories.bowl(x, y).item() == pytest.approx(9 / 20 + 0.25)
    assert trajectories.rosenbrock(x, y).item() == pytest.approx(4 + 100 * 8.5**2)
    # cos(6 pi) = 1 and cos(pi) = -1.
    assert trajectories.rastrigin(x, y).item() == pytest.approx(9 + 0.25 + 20, rel=1e-5)


def test_a_path_is_that_of_the_optimizer_itself():
    surface = trajectories.SURFACES["bowl"]
    points, losses = trajectories.paths(surface, lambda: Sweep({"adam": [0.1, 0.3]}))
    theta = torch.tensor(surface.start, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.3)
    for step in range(trajectories.STEPS + 1):
        torch.testing.assert_close(points[1, step], theta.detach(), rtol=1e-4, atol=1e-5)
        optimizer.zero_grad()
        loss = surface.loss({"theta": theta}, {})
        loss.backward()
        torch.testing.assert_close(losses[1, step], loss.detach(), rtol=1e-4, atol=1e-5)
        optimizer.step()


def test_the_committed_trajectories_are_drawn_again(tmp_path, capsys):
    committed = trajectories.report.RESULTS / "paper_trajectories.json"
    content = json.loads(committed.read_text(encoding="utf-8"))
    for name, surface in content["surfaces"].items():
        assert surface["entries"].keys() == {*trajectories.GRID.ranges, *trajectories.LEARNED}
        for facts in surface["entries"].values():
            assert len(facts["x"]) == len(facts["y"]) == content["steps"] + 1
            assert (facts["x"][0], facts["y"][0]) == pytest.approx(
                trajectories.SURFACES[name].start
            )
    trajectories.show(content)
    assert "L2L, learned" in capsys.readouterr().out
    trajectories.draw(content, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_adam_in_the_anatomy_is_torchs_adam():
    history = torch.tensor([0.3, -0.2, 0.5])
    offered = torch.tensor([-1.0, 0.4])
    found = anatomy.adam_steps(history, offered, 0.1)
    for place, last in enumerate(offered):
        theta = torch.zeros(1, requires_grad=True)
        optimizer, before = torch.optim.Adam([theta], lr=0.1), theta.detach()
        for grad in [*history, last]:
            before = theta.detach().clone()
            theta.grad = grad.reshape(1)
            optimizer.step()
        torch.testing.assert_close(found[place], (theta.detach() - before)[0])


def test_the_step_proposed_for_the_gradient_that_came_is_the_step_taken(rule):
    runs = Runs(Quadratic(dim=3).sample(torch.Generator()), [1])
    _, carry = begin(rule.rule, runs)
    offered = anatomy.rule_steps(rule, carry, 1, carry.grad[0, 1].reshape(1))
    theta = carry.theta[0].clone().requires_grad_()
    optimizer = LearnedOptimizer([theta], rule=rule)
    theta.grad = carry.grad[0]
    optimizer.step()
    torch.testing.assert_close(offered[0], (theta.detach() - carry.theta[0])[1])


def test_a_subject_is_examined_at_each_step_and_drawn(rule, tmp_path):
    subject = anatomy.Subject("q", "none", Quadratic(dim=3), "quadratic", "theta", 2)
    panels = anatomy.examine(subject, rule, 0.1, steps=(1, 4))
    assert [panel["step"] for panel in panels] == [1, 4]
    assert all(len(panel["learned"]) == anatomy.POINTS for panel in panels)
    # At the first step Adam takes its rate against the gradient's sign.
    assert panels[0]["adam"][0] == pytest.approx(0.1, rel=1e-3)
    content = {"rows": [{"title": "q", "panels": panels}]}
    anatomy.draw(content, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5_000


def test_a_long_run_is_kept_at_spaced_steps_and_a_short_one_whole():
    assert failures.shown_steps(100) == list(range(101))
    spaced = failures.shown_steps(10_000)
    assert (spaced[0], spaced[1], spaced[-1]) == (0, 1, 10_000)
    assert len(spaced) < 220
    assert spaced == sorted(set(spaced))


@pytest.fixture
def failing(rule, monkeypatch):
    """A case that takes no time, and a count of how often it ran."""
    case = failures.Failure("small", "small", Quadratic(dim=3), "quadratic", 5, 4, 4, (2, 5))
    monkeypatch.setattr(failures, "load_bundled", lambda name: rule)
    ran = []
    examine = failures.examine
    monkeypatch.setattr(
        failures,
        "examine",
        lambda case, entries, name: ran.append(name) or examine(case, entries, name),
    )
    return case, ran


def test_a_failure_is_measured_once_for_the_same_weights(failing, tmp_path, capsys):
    case, ran = failing
    path = tmp_path / "failures.json"
    failures.measure(path, {"one": case})
    failures.measure(path, {"one": case, "two": case})
    assert ran == ["one", "two"]
    content = json.loads(path.read_text(encoding="utf-8"))
    facts = content["failures"]["one"]["entries"]
    assert facts.keys() == {"adam", "l2l", "default"}
    assert facts["l2l"]["marks"].keys() == {"2", "5"}
    failures.show(content)
    assert "L2L, learned" in capsys.readouterr().out
    failures.draw(content, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_runs_that_diverge_are_counted_and_not_dropped(tmp_path):
    case = failures.Failure("wild", "small", Quadratic(dim=3), "quadratic", 60, 4, 4, (60,))
    found = failures.examine(case, {"adam": lambda: Sweep({"sgd": [1e6]})}, "wild")
    mark = found["entries"]["adam"]["marks"]["60"]
    assert mark["above_start"] == 4
    assert mark["median"] == math.inf
    content = written({"failures": {"wild": found}}, tmp_path / "a.json")
    failures.show(content)
    failures.draw(content, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").is_file()


def test_the_failures_are_those_that_are_known():
    cases = failures.CASES
    assert cases["relu"].family == MnistMLP(activation="relu")
    assert {cases["steps_1000"].steps, cases["steps_10000"].steps} == {1000, 10_000}
    gains = [cases[name].family.gain for name in ("quadratic_x3", "quadratic_x10")]  # type: ignore[attr-defined]
    assert gains == [3.0, 10.0]


def test_every_ablation_changes_what_it_says_and_has_the_same_inner_steps():
    base = ablations.recipe({})
    assert base.rule == L2L(preprocess="none", scale=1.0)
    names = [name for variants in ablations.VARIANTS.values() for name in variants]
    assert len(set(names)) == len(names)
    for variants in ablations.VARIANTS.values():
        for name, changes in variants.items():
            chosen = ablations.recipe(changes)
            assert (chosen == base) == (name == "base")
            unroll = chosen.estimator.unroll  # type: ignore[attr-defined]
            assert chosen.outer.steps * unroll == ablations.INNER_STEPS
            assert chosen.outer.steps // chosen.validation.every == ablations.VALIDATIONS


def test_an_ablation_trains_and_is_tested_and_drawn(tmp_path, capsys):
    chosen = ablations.recipe({"rule": {"hidden": 4, "layers": 1}}, inner_steps=400, runs=8)
    facts = ablations.examine(chosen, test_runs=16)
    assert facts["updates"] == 20
    assert facts["best_update"] > 0
    curve = facts["curve"]["median"]
    assert facts["final"]["runs"] == 16
    assert len(curve) == 101
    diverged = facts | {"group": "cell", "final": facts["final"] | {"mean": math.inf}}
    content = {"variants": {"base": facts | {"group": "base"}, "rnn": diverged}}
    content = written(content, tmp_path / "a.json")
    ablations.show(content)
    assert "diverged" in capsys.readouterr().out
    ablations.draw(content, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5_000


def test_an_ablation_that_is_there_is_not_run_again(tmp_path, monkeypatch):
    ran = []
    facts = {"training_cpu_seconds": 1.0}
    monkeypatch.setattr(ablations, "recipe", lambda changes: ran.append(changes))
    monkeypatch.setattr(ablations, "examine", lambda chosen: facts)
    path = tmp_path / "ablations.json"
    ablations.measure(path)
    count = sum(len(variants) for variants in ablations.VARIANTS.values())
    assert len(ran) == count
    ablations.measure(path)
    assert len(ran) == count
    assert json.loads(path.read_text(encoding="utf-8"))["cpu_seconds"] == count


def test_a_script_goes_on_begins_again_or_only_draws(tmp_path, monkeypatch, capsys):
    seen = []

    def measure(path):
        seen.append(path.is_file())
        path.write_text('{"answer": 42}', encoding="utf-8")

    def draw(content, path):
        path.write_text(str(content["answer"]), encoding="utf-8")

    def show(content):
        sys.stdout.write(f"{content}\n")

    def script(*options):
        monkeypatch.setattr("sys.argv", ["script", "--output", str(tmp_path), *options])
        report.script("", "found", measure, draw, show, resumes=True)

    script()
    script()
    script("--again")
    assert seen == [False, True, False]
    script("--redraw")
    assert len(seen) == 3
    assert (tmp_path / "found.png").read_text(encoding="utf-8") == "42"
    printed = capsys.readouterr().out
    assert printed.count("{'answer': 42}") == 4
    # Of the second alone: a new beginning and a picture have nothing to be wary of.
    assert printed.count("a change of code since then goes unnoticed: see --again") == 1
    with pytest.raises(SystemExit):
        script("--help")
    assert "after a change of code" in " ".join(capsys.readouterr().out.split())


def test_a_long_curve_is_drawn_in_means_where_its_values_are():
    assert plotting.means([1.0, 3.0, 5.0, 7.0, 100.0], 2) == ([0.5, 2.5], [2.0, 6.0])
    assert plotting.means([1.0, 3.0], 1) == ([0, 1], [1.0, 3.0])
    broken = plotting.means([1.0, math.nan, 5.0, 7.0], 2)[1]
    assert math.isnan(broken[0])
    assert broken[1] == 6.0
