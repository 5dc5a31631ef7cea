"""Gradients of whole episodes with smoothed features, on short ones of a small network."""

from __future__ import annotations

import json

import torch

from benchmarks.paper import smoothing
from learned_optim.rules import L2L
from learned_optim.tasks import MnistMLP
from learned_optim.weights import in_memory


def test_every_width_and_length_is_measured_and_drawn(monkeypatch, tmp_path, capsys):
    rule = L2L(layers=1, hidden=4)
    weights = rule.init_weights(torch.Generator().manual_seed(0))
    weights["head.w"] *= 100
    monkeypatch.setattr(smoothing, "load_bundled", lambda _: in_memory(rule, weights, name="x"))
    monkeypatch.setattr(smoothing, "LENGTHS", (3, 6))
    monkeypatch.setattr(smoothing, "WIDTHS", (0.0, 0.1, 1.0))
    monkeypatch.setattr(smoothing, "EPISODES", 2)
    monkeypatch.setattr(
        smoothing, "MnistMLP", lambda: MnistMLP(hidden=4, dataset="digits", batch_size=8)
    )
    path = tmp_path / "paper_smoothing.json"
    smoothing.measure(path)
    content = json.loads(path.read_text())
    assert [(c["length"], c["width"]) for c in content["cells"]] == [
        (length, width) for length in (3, 6) for width in (0.0, 0.1, 1.0)
    ]
    assert all(-1.001 <= cell["cosine"] <= 1.001 for cell in content["cells"])
    smoothing.show(content)
    assert len(capsys.readouterr().out.splitlines()) == 7
    smoothing.draw(content, path.with_suffix(".png"))
    assert path.with_suffix(".png").stat().st_size > 10_000
