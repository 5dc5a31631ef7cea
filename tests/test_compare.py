"""`compare`: the user's function is checked, Adam is tuned honestly, the sentences are true."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from learned_optim import LoadedRule, cli
from learned_optim.compare import CompareConfig, FactoryError, Problem, Report, run_compare
from learned_optim.compare.contest import search
from learned_optim.compare.report import Entry
from learned_optim.compare.training import Contender, Run, points, train
from learned_optim.factory import FunctionFailed, build, load_factory
from learned_optim.reporting import against
from learned_optim.rules import Adam
from learned_optim.weights import in_memory


def adam_rule(rate: float = 1e-3) -> LoadedRule:
    rule = Adam(learning_rate=rate)
    return in_memory(rule, rule.init_weights(torch.Generator()), name="adam-as-a-rule")


def line() -> Problem:
    """Least squares on eight numbers, with noise in the minibatch."""
    model = nn.Linear(8, 1)

    def loss() -> torch.Tensor:
        x = torch.randn(16, 8)
        return (model(x) - x.sum(-1, keepdim=True)).square().mean()

    return Problem(model, loss)


def with_evaluation() -> Problem:
    """The distance of the weights from the solution, which is not the loss."""
    model, loss, _ = line()
    weight = next(model.parameters())
    return Problem(model, loss, lambda: (weight - 1).abs().max())


def sgd(rate: float) -> Contender:
    return Contender("sgd", lambda params: torch.optim.SGD(params, lr=rate))


def small(folder: Path, **changes: object) -> CompareConfig:
    settings = {"model": line, "steps": 40, "rule": adam_rule(), "seeds": 2, "tuning_seeds": 1}
    return CompareConfig(**(settings | {"folder": folder, "quiet": True} | changes))  # pyright: ignore


# -- the user's function ---------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module into the current folder; returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str) -> str:
        name = f"users_module_{abs(hash(text))}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_a_module_that_reads_what_is_not_there_shows_its_traceback(module: Callable[[str], str]):
    name = module("open('none.csv')\n")
    with pytest.raises(FunctionFailed, match=r"none\.csv"):
        load_factory(f"{name}:build")


def test_a_function_is_found_in_the_current_folder(module: Callable[[str], str]):
    name = module("def build():\n    return 3\n")
    assert load_factory(f"{name}:build")() == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", "must be 'module:function'"),
        (":build", "must be 'module:function'"),
        ("mine:", "must be 'module:function'"),
        ("src/mine.py:build", "'src.mine:build'"),
        ("no_such_module:build", "no module 'no_such_module' in"),
        ("json.no_such:build", r"no module 'json\.no_such' in"),
        ("json:no_such", "has no function 'no_such'; it has: .*dumps"),
    ],
)
def test_a_function_that_is_not_there_is_an_error(name: str, message: str):
    with pytest.raises(FactoryError, match=message):
        load_factory(name)


def test_what_the_users_module_lacks_is_named(module: Callable[[str], str]):
    name = module("import no_such_dependency\n")
    with pytest.raises(FactoryError, match="needs 'no_such_dependency', which is not installed"):
        load_factory(f"{name}:build")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (nn.Linear(1, 1), "must return"),
        ((nn.Linear(1, 1),), "must return"),
        (("model", lambda: 0), "but model is"),
        ((nn.Linear(1, 1), 0.5), r"but loss is 0\.5"),
        ((nn.Linear(1, 1), lambda: 0, 0.5), r"but evaluate is 0\.5"),
        ((nn.Tanh(), lambda: 0), "no parameter with requires_grad"),
    ],
)
def test_a_factory_that_returns_something_else_is_an_error(made: object, message: str):
    with pytest.raises(FactoryError, match=message):
        build(lambda: made, 0)


@pytest.mark.parametrize("loss", [0.5, torch.zeros(()), torch.zeros(2, requires_grad=True)])
def test_a_loss_that_cannot_be_descended_is_an_error(loss: object):
    with pytest.raises(FactoryError, match="a tensor of one element that depends on"):
        train(lambda: (nn.Linear(1, 1), lambda: loss), sgd(0.1), 2, 0)


def test_an_evaluation_that_is_no_number_is_an_error():
    with pytest.raises(FactoryError, match="must return a number"):
        train(lambda: (*line()[:2], lambda: "low"), sgd(0.1), 2, 0)


def test_every_run_starts_from_its_seed():
    runs = [train(line, sgd(0.1), 30, seed).curve for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


# -- one run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 20, 21, 1000])
def test_the_points_of_a_curve_rise_to_the_last_step(steps: int):
    found = points(steps)
    assert found == sorted(set(found))
    assert found[-1] == steps
    assert len(found) == min(steps, 20)


def test_a_curve_holds_the_mean_loss_between_its_points():
    values = iter(range(40))

    def factory() -> Problem:
        model = nn.Linear(1, 1)
        return Problem(model, lambda: model.bias.sum() * 0 + next(values))

    assert train(factory, sgd(0.0), 40, 0).curve == [2 * k + 0.5 for k in range(20)]


def test_an_evaluation_takes_the_place_of_the_loss():
    run = train(with_evaluation, sgd(0.05), 200, 0)
    model, loss, evaluate = build(with_evaluation, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert evaluate is not None
    assert run.final == pytest.approx(torch.as_tensor(evaluate()).item(), rel=1e-6)


def test_a_cosine_takes_the_rate_to_zero():
    rates = []

    class Spy(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            rates.append(self.param_groups[0]["lr"])

    train(line, Contender("spy", lambda params: Spy(params, lr=1.0), anneal=True), 4, 0)
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)])


def test_a_run_that_diverges_ends_there_and_counts_as_infinite():
    calls = []

    def factory() -> Problem:
        model, loss, _ = line()

        def counted() -> torch.Tensor:
            calls.append(1)
            return loss()

        return Problem(model, counted)

    run = train(factory, sgd(1e30), 400, 0)
    assert run.final == math.inf
    assert len(run.curve) == 20
    assert len(calls) < 100


# -- tuning ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("best", [1e-4, 3.2e-3, 1e-1, 1.8, 1e-6])
def test_the_search_finds_the_best_rate_to_a_quarter_of_a_decade(best: float):
    grid = search(lambda rate: abs(math.log10(rate / best)))
    found = min(grid, key=lambda rate: grid[rate])
    assert abs(math.log10(found / best)) <= 0.126
    rates = list(grid)
    assert rates == sorted(rates)
    assert found not in (rates[0], rates[-1])


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_search_ends_where_no_rate_is_the_best(sign: int):
    grid = search(lambda rate: sign * rate)
    assert len(grid) < 24
    assert 1e-8 < min(grid) < max(grid) < 20


def test_the_search_survives_rates_that_all_diverge():
    grid = search(lambda rate: math.inf)
    assert set(grid.values()) == {math.inf}


# -- the whole -------------------------------------------------------------------------------------


def test_adam_as_a_rule_ties_with_adam(tmp_path: Path):
    report = run_compare(small(tmp_path))
    learned, _, default, *_ = report.entries
    for mine, torchs in zip(learned.runs, default.runs, strict=True):
        assert mine.curve == pytest.approx(torchs.curve, rel=1e-4)
    assert "LearnedOptimizer is level with Adam, default rate, 0.001" in report.text


def test_tuned_adam_is_better_than_untuned_and_the_table_says_what_it_took(tmp_path: Path):
    report = run_compare(small(tmp_path, rule=adam_rule(1e-9)))
    _, _, default, constant, cosine = report.entries
    assert max(constant.final, cosine.final) < default.final
    assert "beats" not in report.text
    assert report.verdict().count("loses to") == 3
    rows = report.rows()
    assert [row[-1] for row in rows[1:4]] == ["0", "0", "0"]
    assert rows[4][-1] == str(len(constant.grid))


def test_decay_makes_adam_adamw_and_reaches_both(tmp_path: Path):
    report = run_compare(small(tmp_path, weight_decay=100.0, seeds=1))
    learned, _, default, *_ = report.entries
    assert default.contender.name.startswith("AdamW")
    assert learned.final == pytest.approx(default.final, rel=1e-3)
    plain = run_compare(small(tmp_path, seeds=1))
    assert abs(learned.final - plain.entries[0].final) > 0.01


def test_the_files_hold_the_numbers(tmp_path: Path):
    report = run_compare(small(tmp_path / "out", model=with_evaluation))
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert content["rule"] == "adam-as-a-rule"
    for saved, entry in zip(content["entries"], report.entries, strict=True):
        assert saved["final"] == entry.final
        assert [run["curve"] for run in saved["runs"]] == [run.curve for run in entry.runs]
        assert {one["rate"]: one["final"] for one in saved["grid"]} == entry.grid
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_evaluated_is_evaluated_at_the_mean_too(tmp_path: Path):
    report = run_compare(small(tmp_path, model=with_evaluation, rule="default", seeds=1))
    learned, mean, told, *_ = report.entries
    assert mean.contender.name == "LearnedOptimizer, averaged()"
    assert mean.final == pytest.approx(learned.final, rel=0.5)
    assert mean.final != learned.final
    assert told.contender.name == "LearnedOptimizer, total_steps"
    assert "Not told but within averaged(), it" in report.text
    assert (tmp_path / "compare.png").is_file()
    # The training loss is what it is.
    plain = run_compare(small(tmp_path, rule="default", seeds=1))
    assert len(plain.entries) == len(report.entries) - 1
    assert "averaged" not in plain.text


def made_up(learned: float, tuned: dict[float, float], folder: Path) -> Report:
    contender = sgd(0.1)
    entries = [Entry(contender, [Run([1.0, learned])]) for _ in range(3)]
    entries += [Entry(contender, [Run([1.0, min(tuned.values())])], tuned) for _ in range(2)]
    return Report("a model", 2, adam_rule(), entries, 1, folder)


def test_a_run_that_diverged_is_null_in_the_file(tmp_path: Path):
    report = made_up(math.inf, {0.1: 0.3, 0.2: 0.2, 0.3: math.inf}, tmp_path)
    report.write()
    text = (tmp_path / "compare.json").read_text()
    assert "Infinity" not in text
    assert json.loads(text)["entries"][0]["final"] is None
    assert "loses to the best constant rate (it diverged)" in report.text


def test_a_best_rate_at_the_edge_is_pointed_out(tmp_path: Path):
    assert "edge" not in made_up(0.3, {0.1: 0.3, 0.2: 0.2, 0.3: 0.4}, tmp_path).text
    assert made_up(0.3, {0.1: 0.1, 0.2: 0.2}, tmp_path).text.count("at the edge") == 2


@pytest.mark.parametrize(
    ("mine", "other", "said"),
    [
        (0.5, 1.0, "beats X (0.50 times its loss)"),
        (2.0, 1.0, "loses to X (2.00 times its loss)"),
        (1.01, 1.0, "is level with X"),
        (0.0, 0.0, "is level with X"),
        (0.0, 0.5, "beats X (0 against 0.5)"),
        (-1.0, -2.0, "loses to X (-1 against -2)"),
        (math.inf, 1.0, "loses to X (it diverged)"),
        (1.0, math.inf, "beats X, which diverged"),
        (math.nan, math.inf, "diverged, like X"),
    ],
)
def test_two_losses_become_a_verdict(mine: float, other: float, said: str):
    assert against(mine, other, "X") == said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be in"),
        ({"seeds": 0}, "seeds must be in"),
        ({"tuning_seeds": 2_000}, "tuning_seeds must be in"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"weight_decay": math.nan}, "weight_decay must be"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, object], message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        small(tmp_path, **changes)


USERS = """
import torch

def build():
    model = torch.nn.Linear(2, 1)
    return model, lambda: model(torch.ones(1, 2)).square().mean() + 1
"""


def test_the_command_prints_the_table_and_writes_where_it_is_told(
    module: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    name, out = module(USERS), tmp_path / "out"
    argv = ["compare", "--model", f"{name}:build", "--steps", "3", "--seeds", "1"]
    cli.main([*argv, "--tuning-seeds", "1", "--quiet", "--folder", str(out)])
    printed = capsys.readouterr().out
    assert f"{name}:build, 3 steps, rule default: median of 1 seed\n" in printed
    assert "Adam, cosine, best of" in printed
    assert str(out / "compare.png") in printed
    assert (out / "compare.json").exists()


FAILS = """
import torch

def build():
    model = torch.nn.Linear(2, 1)

    def loss():
        in loss
        return model(torch.ones(2)).square().mean()

    def evaluate():
        in evaluate
        return 1.0

    in build
    return model, loss, evaluate
"""


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, ModuleNotFoundError])
@pytest.mark.parametrize("where", ["build", "loss", "evaluate"])
def test_an_error_in_the_users_function_shows_its_traceback(
    module: Callable[[str], str], kind: type[Exception], where: str
):
    text = FAILS.replace(f"in {where}\n", f"raise {kind.__name__}('mine')\n")
    name = module(re.sub(r"^ +in \w+\n", "", text, flags=re.MULTILINE))
    expected = ValueError if kind is ValueError else FunctionFailed
    with pytest.raises(expected, match="mine"):
        cli.main(["compare", "--model", f"{name}:build", "--steps", "3", "--quiet"])
