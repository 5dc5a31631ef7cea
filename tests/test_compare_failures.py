"""`compare` and the demo: what can be known before the runs is said before them, and no loss,
however odd, keeps the table and the picture from being made.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from learned_optim import LoadedRule
from learned_optim.compare import CompareConfig, Problem, Report, contest, run_compare
from learned_optim.demo import DemoConfig, run_demo
from learned_optim.demo import compare as demo
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
