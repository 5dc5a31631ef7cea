"""The sweep over widths and depths, on two sizes and few steps."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.paper import sweep
from learned_optim.tasks import MnistMLP


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Digits for MNIST, which need no download."""
    monkeypatch.setattr(sweep, "WIDTHS", (3, 5))
    monkeypatch.setattr(sweep, "DEPTHS", (1, 2))
    monkeypatch.setattr(sweep, "RUNS", 3)
    monkeypatch.setattr(sweep, "STEPS", 4)
    monkeypatch.setattr(
        sweep,
        "MnistMLP",
        lambda hidden, layers: MnistMLP(hidden, layers, dataset="digits", batch_size=8),
    )
    return tmp_path / "paper_sweep.json"


def test_each_size_is_measured_once_and_drawn(tiny, monkeypatch, capsys):
    sweep.measure(tiny)
    content = json.loads(tiny.read_text())
    assert list(content["sizes"]) == ["1x3", "1x5", "2x3", "2x5"]
    for size in content["sizes"].values():
        best = size["entries"]["adam"]
        assert best["rate"] in sweep.RATES["adam"]
        assert math.isfinite(sweep.ratio(size))
    monkeypatch.setattr(sweep, "examine", lambda *_: pytest.fail("measured again"))
    sweep.measure(tiny)
    sweep.show(content)
    assert capsys.readouterr().out.count(" x ") == 5
    sweep.draw(content, tiny.with_suffix(".png"))
    assert tiny.with_suffix(".png").stat().st_size > 10_000


def test_a_rule_that_diverges_has_an_infinite_ratio():
    entries = {"learned": {"mean": None}, "adam": {"mean": 1.0}, "nag": {"mean": 2.0}}
    assert math.isinf(sweep.ratio({"entries": entries}))
