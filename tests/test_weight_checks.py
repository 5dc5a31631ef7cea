"""Weights that are no tensors of numbers, and messages that stay short whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from learned_optim import weight_checks
from learned_optim.rules import Adam
from learned_optim.weights import WeightsError, in_memory, save_folder

RULE = Adam()


def drawn() -> dict[str, Any]:
    return RULE.init_weights(torch.Generator())


@pytest.mark.parametrize("kind", ["ndarray", "float", "on the meta device"])
def test_weights_without_a_tensor_or_its_numbers_are_refused(kind: str, tmp_path: Path):
    bad = drawn()
    change = {"ndarray": torch.Tensor.numpy, "float": torch.Tensor.item}
    bad["log_lr"] = change.get(kind, lambda tensor: tensor.to("meta"))(bad["log_lr"])
    message = f"weight log_lr must be a tensor of numbers but is .*{kind}"
    with pytest.raises(WeightsError, match=message):
        in_memory(RULE, bad, name="x")
    with pytest.raises(WeightsError, match=message):
        save_folder(tmp_path / "new", RULE, bad, name="x")
    assert not (tmp_path / "new").exists()


def test_a_shape_of_many_axes_is_shortened():
    bad = drawn() | {"log_lr": torch.zeros([1] * 60)}
    with pytest.raises(WeightsError, match=r"log_lr must have shape \[\] but has \[1, 1") as error:
        in_memory(RULE, bad, name="x")
    assert len(str(error.value)) < 100


def test_what_the_parser_says_is_shortened():
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}
    header = json.dumps({"x" * 100_000: entry}).encode()
    blob = len(header).to_bytes(8, "little") + header + bytes(4)
    with pytest.raises(WeightsError, match="no valid safetensors") as error:
        weight_checks.parse_weights(blob, RULE, "here")
    assert len(str(error.value)) < 400
