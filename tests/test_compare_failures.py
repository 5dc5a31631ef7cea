"""`compare` and the demo: what can be known before the runs is said before them, and no loss,
however odd, keeps the table and the picture from being made.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from learned_optim import LoadedRule
from learned_optim.compare import CompareConfig, FactoryError, Problem, Report, contest, run_compare
from learned_optim.demo import DemoConfig, run_demo
from learned_optim.demo import compare as demo
from learned_optim.factory import build, build_anew
from learned_optim.reporting import save, scale
from learned_optim.rules import Adam
from learned_optim.weights import in_memory


def rule() -> LoadedRule:
    return in_memory(Adam(), Adam().init_weights(torch.Generator()), name="adam-as-a-rule")


def of(model: nn.Linear) -> Problem:
    return Problem(model, lambda: model(torch.ones(1, 2)).square().mean())


def fresh() -> Problem:
    return of(nn.Linear(2, 1))


def compared(model: Callable[[], object], folder: Path) -> Report:
    config = CompareConfig(model, 2, rule(), seeds=1, tuning_seeds=1, folder=folder, quiet=True)
    return run_compare(config)


def shown(folder: Path) -> None:
    run_demo(DemoConfig(rule(), ("relu",), steps=2, seeds=1, folder=folder, quiet=True))


# -- before the runs -------------------------------------------------------------------------------


@pytest.fixture(params=["compare", "demo"])
def report(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], object]:
    """Ask for a report into a folder; a run that is trained for it fails the test."""

    def train(*arguments: object) -> None:
        pytest.fail("a run was trained")

    monkeypatch.setattr(contest, "train", train)
    monkeypatch.setattr(demo, "train", train)
    return functools.partial(compared, fresh) if request.param == "compare" else shown


def test_a_folder_that_cannot_be_is_refused_before_the_runs(
    report: Callable[[Path], object], tmp_path: Path
):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="file"):
        report(tmp_path / "file")


def test_a_folder_that_takes_no_file_is_refused_before_the_runs(report: Callable[[Path], object]):
    # A folder in which nobody, and no superuser either, can make a file.
    if not Path("/proc/self").is_dir():
        pytest.skip("needs Linux")
    with pytest.raises(OSError, match="/proc/self"):
        report(Path("/proc/self"))


def test_matplotlib_is_missed_before_the_runs(
    report: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        report(tmp_path)


MADE_ONCE = nn.Linear(2, 1)


def on_one_storage() -> Problem:
    model = nn.Linear(2, 1)
    model.weight = nn.Parameter(MADE_ONCE.weight.detach())
    return of(model)


def unseeded() -> Problem:
    model = nn.Linear(2, 1)
    drawn = np.random.default_rng().normal(size=(1, 2))
    model.weight.data = torch.from_numpy(drawn).float()
    return of(model)


@pytest.mark.parametrize("factory", [lambda: of(MADE_ONCE), on_one_storage, unseeded])
def test_a_model_that_is_not_made_anew_is_refused(factory: Callable[[], Problem], tmp_path: Path):
    with pytest.raises(FactoryError, match="make the model inside the function"):
        compared(factory, tmp_path)


def reset() -> Problem:
    """One model that starts anew all the same."""
    MADE_ONCE.reset_parameters()
    return of(MADE_ONCE)


def lazy() -> Problem:
    model = nn.LazyLinear(1)
    return Problem(model, lambda: model(torch.ones(1, 2)).sum())


@pytest.mark.parametrize("factory", [fresh, reset])
def test_a_model_that_starts_anew_is_accepted_and_starts_where_its_seed_says(
    factory: Callable[[], Problem],
):
    expected = build(fresh, 0).model.get_parameter("weight")
    assert torch.equal(build_anew(factory).model.get_parameter("weight"), expected)


def test_lazy_layers_are_compared_like_others(tmp_path: Path):
    assert "LearnedOptimizer is level with Adam, default" in compared(lazy, tmp_path).text


def test_a_function_that_wants_arguments_is_refused(tmp_path: Path):
    with pytest.raises(FactoryError, match=r"without arguments, but: missing .* 'model'"):
        compared(of, tmp_path)  # pyright: ignore[reportArgumentType]


def test_the_demo_wants_a_network():
    with pytest.raises(ValueError, match=r"activations must name some of \['relu', 'sigmoid'"):
        DemoConfig(activations=())


# -- after the runs --------------------------------------------------------------------------------


class Made:
    def __call__(self) -> Problem:
        return fresh()


@pytest.mark.parametrize("factory", [functools.partial(fresh), Made()])
def test_a_callable_without_a_name_is_called_as_it_is_shown(
    factory: Callable[[], Problem], tmp_path: Path
):
    assert compared(factory, tmp_path).text.startswith(f"{factory!r}, 2 steps")


@pytest.mark.parametrize("value", [math.nan, -math.inf, -1.0, 0.0, 1e-50, 1e39])
def test_whatever_is_evaluated_there_are_a_table_and_a_picture(value: float, tmp_path: Path):
    text = compared(lambda: fresh()._replace(evaluate=lambda: value), tmp_path).text
    assert (tmp_path / "compare.png").is_file()
    assert "nan" not in text
    # A ratio means something between positive losses only.
    ratios = {line.split()[-3] for line in text.splitlines()[2:7]}
    assert ratios == {"1.00" if 0 < value < math.inf else "-"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], "linear"),
        ([math.inf, math.nan], "linear"),
        ([math.inf, 0.5], "log"),
        ([0.0, 0.5], "linear"),
        ([-math.inf, 0.5], "log"),
    ],
)
def test_an_axis_is_logarithmic_where_all_that_is_finite_is_positive(
    values: list[float], expected: str
):
    assert scale(values) == expected


def test_a_picture_that_fails_leaves_the_last_report(tmp_path: Path):
    class Broken(Figure):
        def savefig(self, *args: object, **kwargs: object) -> None:
            raise MemoryError

    save(tmp_path, "report", {"loss": 0.5}, Figure())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(MemoryError):
        save(tmp_path, "report", {"loss": 0.4}, Broken())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
