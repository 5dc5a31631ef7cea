"""The language model of real scale: its runs can be stopped, and its results say what they are."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks import real_scale
from benchmarks.muon import MuonAndAdamW
from benchmarks.real_scale import QUICK, Size, Training, contenders, measure, table
from benchmarks.real_scale_figure import draw, smoothed
from learned_optim.tasks import TransformerLanguageModel

# Generated text: Shakespeare need not be there.
TINY = dataclasses.replace(QUICK, dataset="generated", steps=6)


def options(folder: Path, *only: str) -> argparse.Namespace:
    return argparse.Namespace(rule="default", only=only, folder=folder)


@pytest.mark.parametrize(
    "key",
    ["default_told", "adamw_0.001", "adamw_warm_0.001", "muon_warm_0.01", "prodigy_cosine"],
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(key, tmp_path, monkeypatch):
    if key.startswith("prodigy"):
        pytest.importorskip("prodigyopt")
    monkeypatch.setattr(real_scale, "CHECKPOINT_EVERY", 1)
    contender = contenders("default", TINY.steps)[key]
    whole = Training(contender, TINY, tmp_path / "whole.pt")
    whole.run()
    part = Training(contender, TINY, tmp_path / "part.pt")
    for _ in range(3):
        part._advance()
    part._save()
    again = Training(contender, TINY, tmp_path / "part.pt")
    assert again.losses == whole.losses[:3]
    again.run()
    assert again.losses == whole.losses
    assert again.test_loss() == whole.test_loss()


def test_muon_moves_hidden_matrices_and_adamw_all_others():
    rate, generator = 0.01, torch.Generator().manual_seed(0)
    shapes = {"block0.mix.weight": (8, 6), "head.weight": (8, 6), "embedding": (9, 6), "bias": (8,)}
    params = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for param in params.values():
        param.grad = torch.randn(param.shape, generator=generator)
    MuonAndAdamW(params, rate).step()
    hidden = params.pop("block0.mix.weight")
    values = torch.linalg.svdvals(hidden)
    assert float(values.min()) > 0.5 * float(values.max())
    # As long as AdamW's are in practice, where gradients seldom agree: a fifth of the rate.
    assert float(hidden.square().mean().sqrt()) == pytest.approx(0.2 * rate, rel=0.2)
    for param in params.values():
        assert param.grad is not None
        assert torch.allclose(param, -rate * param.grad.sign(), rtol=1e-4)


def test_a_checkpoint_of_another_size_is_refused(tmp_path):
    contender = contenders("default", 6)["adamw_0.001"]
    Training(contender, TINY, tmp_path / "a.pt").run()
    with pytest.raises(ValueError, match="another size"):
        Training(contender, dataclasses.replace(TINY, width=16), tmp_path / "a.pt")


def test_results_hold_complete_runs_and_are_drawn(tmp_path):
    path = tmp_path / "real_scale.json"
    measure(TINY, options(tmp_path, "adamw_0.001"), path)
    content = measure(TINY, options(tmp_path, "default"), path)
    assert list(content["runs"]) == ["default", "adamw_0.001"]
    assert json.loads(path.read_text())["runs"] == content["runs"]
    run = content["runs"]["default"]
    assert run["final_loss"] == pytest.approx(run["losses"][-1], rel=1e-3)
    assert run["test_loss_averaged"] == pytest.approx(run["test_loss"], rel=0.1)
    assert run["test_loss_averaged"] != run["test_loss"]
    assert "test_loss_averaged" not in content["runs"]["adamw_0.001"]
    assert "AdamW + cosine, 0.001" in table(content)
    draw(content, path.with_suffix(".png"))
    assert path.with_suffix(".png").stat().st_size > 5_000


def test_runs_whose_checkpoints_are_gone_stay_in_the_results(tmp_path):
    path = tmp_path / "real_scale.json"
    before = measure(TINY, options(tmp_path / "a", "default", "adamw_0.001"), path)
    after = measure(TINY, options(tmp_path / "b", "adamw_0.0003"), path)
    assert list(after["runs"]) == ["default", "adamw_0.0003", "adamw_0.001"]
    assert after["runs"]["default"] == before["runs"]["default"]
    path.write_text(json.dumps(after | {"rule_sha256": "another"}))
    last = measure(TINY, options(tmp_path / "c", "adamw_0.001"), path)
    assert list(last["runs"]) == ["adamw_0.0003", "adamw_0.001"]


def test_the_model_has_five_million_parameters():
    size = dataclasses.asdict(Size())
    assert size.pop("dataset") == "tinyshakespeare"
    del size["steps"]
    task = TransformerLanguageModel(dataset="generated", alphabet=64, **size).sample(
        torch.Generator()
    )
    params, _ = task.init(torch.Generator())
    assert 4_500_000 < sum(value.numel() for value in params.values()) < 5_500_000


def test_a_curve_is_drawn_through_the_means_of_windows():
    steps, means = smoothed([float(k) for k in range(80)])
    assert (steps[0], means[0]) == (1.0, 0.5)
    assert len(steps) == 40
