"""Networks from starts of several widths, beside the paper's figures, on few steps."""

from __future__ import annotations

import json

import pytest

from benchmarks.paper import starts
from learned_optim.tasks import MnistMLP


def test_each_network_is_measured_once_and_drawn(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(starts, "STDS", (0.01, 0.1))
    monkeypatch.setattr(starts, "RUNS", 3)
    monkeypatch.setattr(starts, "STEPS", 4)
    monkeypatch.setattr(
        starts,
        "MnistMLP",
        lambda layers, hidden, init_std: MnistMLP(
            layers=layers, hidden=4, init_std=init_std, dataset="digits", batch_size=8
        ),
    )
    path = tmp_path / "paper_starts.json"
    starts.measure(path)
    content = json.loads(path.read_text())
    assert list(content["starts"]) == [
        f"{network}, {std}" for std in (0.01, 0.1) for network in ("1 x 20", "1 x 40", "2 x 20")
    ]
    for network in content["starts"].values():
        assert network["entries"]["sgd"]["rate"] in starts.RATES["sgd"]
    monkeypatch.setattr(starts, "examine", lambda *_: pytest.fail("measured again"))
    starts.measure(path)
    starts.show(content)
    assert len(capsys.readouterr().out.splitlines()) == 7
    starts.draw(content, path.with_suffix(".png"))
    assert path.with_suffix(".png").stat().st_size > 10_000


def test_the_distance_leaves_the_learned_rule_out():
    entries = {key: {"mean": value} for key, value in starts.PAPER[1, 20].items()}
    network = {"layers": 1, "units": 20, "entries": entries | {"learned": {"mean": 9.0}}}
    assert starts.distance(network) == 0
    entries["sgd"]["mean"] *= 2.718281828459045**4
    assert starts.distance({"layers": 1, "units": 20, "entries": entries}) == pytest.approx(1.0)
