"""The demo: honest baselines, honest sentences, files that can be read back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from learned_optim import LoadedRule
from learned_optim.demo import DemoConfig, run_demo
from learned_optim.demo.digits import Run, Training, load, minibatches, network, train
from learned_optim.demo.report import Contender, Network, Report
from learned_optim.rules import Adam
from learned_optim.weights import in_memory, save_folder

TRAINING = Training(steps=12)


def adam_rule(rate: float = 1e-3) -> LoadedRule:
    rule = Adam(learning_rate=rate)
    return in_memory(rule, rule.init_weights(torch.Generator()), name="adam-as-a-rule")


def small(folder: Path, rule: LoadedRule | str, **changes: object) -> DemoConfig:
    settings = {"activations": ("relu",), "steps": 12, "seeds": 2, "tuning_seeds": 1}
    settings |= {"decades": (-3, -2), "quiet": True}
    return DemoConfig(rule=rule, folder=folder, **(settings | changes))  # pyright: ignore


def made_up(learned: float, default: float, best: float) -> Network:
    """A comparison with the given final losses."""
    contenders = [
        Contender(name, [Run(train_loss=[2.3, 1.0, loss], test_accuracy=[0.1, 0.5, 0.9])])
        for name, loss in (("learned", learned), ("default", default), ("best", best))
    ]
    return Network("relu", TRAINING, {1e-3: default, 1e-2: best, 1e-1: math.inf}, contenders)


def test_adam_as_a_rule_ties_with_adam(tmp_path: Path):
    report = run_demo(small(tmp_path, adam_rule()))
    learned, default, _ = report.networks[0].contenders
    for mine, torchs in zip(learned.runs, default.runs, strict=True):
        assert mine.train_loss == pytest.approx(torchs.train_loss, rel=1e-4)
    assert "is level with Adam at its default rate" in report.text


def test_a_rule_that_does_not_move_is_said_to_lose(tmp_path: Path):
    report = run_demo(small(tmp_path, adam_rule(1e-9)))
    assert report.text.count("loses to") == 2
    assert "beats" not in report.text


def test_the_best_rate_is_the_best_of_the_tuning_seeds(tmp_path: Path):
    (result,) = run_demo(small(tmp_path, adam_rule())).networks
    digits = load()
    losses = {
        rate: train(
            lambda params, rate=rate: torch.optim.Adam(params, lr=rate),
            digits,
            "relu",
            TRAINING,
            seed=1_000,
        ).final_loss
        for rate in (1e-3, 1e-2)
    }
    assert len(result.grid) == 5
    assert result.grid[1e-3] == pytest.approx(losses[1e-3])
    assert min(result.grid.values()) <= min(losses.values()) * 1.001
    best = min(result.grid, key=lambda rate: result.grid[rate])
    assert f"best of 5 rates, {best:.2g}" in result.contenders[-1].name


def test_the_demo_repeats_itself(tmp_path: Path):
    first, second = (
        run_demo(small(tmp_path, adam_rule(), decades=(-3, -2), seeds=1)) for _ in range(2)
    )
    for one, other in zip(first.networks[0].contenders, second.networks[0].contenders, strict=True):
        assert one.runs[0].train_loss == other.runs[0].train_loss


def test_the_demo_leaves_the_global_generator_and_the_threads_alone(tmp_path: Path):
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    run_demo(small(tmp_path, adam_rule(), seeds=1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_files_are_written_and_hold_the_numbers(tmp_path: Path):
    saved = save_folder(
        tmp_path / "rule", adam_rule().rule, adam_rule().weights, name="from-a-folder"
    )
    report = run_demo(small(tmp_path / "out", str(tmp_path / "rule")))
    content = json.loads((tmp_path / "out" / "digits.json").read_text())
    assert content["rule"] == "from-a-folder"
    assert content["sha256"] == saved.sha256
    runs = content["networks"][0]["contenders"][0]["runs"]
    assert [run["train_loss"] for run in runs] == [
        run.train_loss for run in report.networks[0].contenders[0].runs
    ]
    assert len(runs[0]["train_loss"]) == len(content["networks"][0]["evaluated_at"])
    assert (tmp_path / "out" / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_diverged_is_null_in_the_file_and_infinite_in_the_grid(tmp_path: Path):
    result = made_up(math.nan, 0.5, 0.1)
    assert "loses to Adam at its best rate (it diverged)" in result.verdict()
    Report([result], "broken", "0" * 64, tmp_path).write()
    text = (tmp_path / "digits.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    contender = json.loads(text)["networks"][0]["contenders"][0]
    assert contender["runs"][0]["train_loss"][-1] is None


@pytest.mark.parametrize(
    ("learned", "said"),
    [
        (0.05, "beats Adam at its best rate (0.50 times its loss)"),
        (0.101, "is level with Adam at its best rate"),
        (0.0005, "beats Adam at its best rate (0.005 times its loss)"),
        (0.30, "beats Adam at its default rate (0.60 times its loss) and loses to"),
        (1.00, "loses to Adam at its default rate (2.00 times its loss)"),
    ],
)
def test_the_verdict_says_who_won(learned: float, said: str):
    assert said in made_up(learned, 0.5, 0.1).verdict()


def test_a_best_rate_at_the_edge_of_the_grid_is_pointed_out():
    inside = made_up(0.2, 0.5, 0.1)
    assert inside.edge_note() == ""
    edge = Network("relu", TRAINING, {1e-3: 0.1, 1e-2: 0.5}, inside.contenders)
    assert "edge of its grid" in edge.edge_note()
    assert edge.edge_note() in Report([edge], "rule", "0" * 64, Path()).text


def test_train_and_test_are_disjoint_and_whole():
    digits = load()
    assert (len(digits.train_y), len(digits.test_y)) == (1437, 360)
    images = torch.cat((digits.train_x, digits.test_x))
    assert len(images.unique(dim=0)) == len(images)
    assert images.min() >= 0
    assert images.max() <= 1
    assert digits.test_y.bincount(minlength=10).min() >= 30


def test_minibatches_go_through_the_data_once_an_epoch():
    batches = minibatches(20, 5, seed=0)
    epoch = torch.cat([next(batches) for _ in range(4)])
    again = torch.cat([next(batches) for _ in range(4)])
    assert epoch.sort().values.tolist() == list(range(20))
    assert epoch.tolist() != again.tolist()


def test_networks_differ_by_seed_only():
    first, same, other = (network("tanh", seed).state_dict()["0.weight"] for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activations": ("swish",)}, "'swish'"),
        ({"steps": 0}, "steps must be in"),
        ({"seeds": 0}, "seeds must be in"),
        ({"tuning_seeds": 2_000}, "tuning_seeds must be in"),
        ({"decades": (0, -4)}, "must rise"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        DemoConfig(**changes)  # pyright: ignore
