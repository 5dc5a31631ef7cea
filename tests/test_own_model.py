"""Models of the user's own as tasks: they are what the function makes, and can be learned on."""

from __future__ import annotations

from pathlib import Path

import own_models
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from learned_optim.factory import seed_all
from learned_optim.meta_training import RecipeError, run
from learned_optim.meta_training.recipe_file import read_recipe
from learned_optim.meta_training.unroll import Runs
from learned_optim.tasks import OwnModel, own_model

KINDS = ("regression", "attention", "recurrent", "convolution")

RECIPE = """
name = "own"
[rule]
name = "l2l"
layers = 1
hidden = 4
[[tasks]]
family = "own_model"
model = "own_models:{model}"
runs = 2
[estimator]
name = "tbptt"
unroll = 5
second_derivatives = {second}
[horizon]
name = "constant"
steps = 5
[outer]
steps = {updates}
[validation]
every = 2
runs = 2
steps = 5
"""


def runs_of(kind: str, seeds: list[int]) -> Runs:
    return Runs(OwnModel(f"own_models:{kind}").sample(torch.Generator()), seeds)


def by_hand(kind: str, batch: dict[str, Tensor], index: int) -> tuple[list[Tensor], Tensor]:
    """Parameters that are trained, and the loss of one minibatch, of the user's model itself."""
    seed_all(int(batch["built"][index]))
    model, loss = getattr(own_models, kind)()
    seed_all(int(batch["drawn"][index]))
    # The other kernels of attention have one derivative only.
    with sdpa_kernel(SDPBackend.MATH):
        return [param for param in model.parameters() if param.requires_grad], loss()


@pytest.mark.parametrize("kind", KINDS)
def test_losses_gradients_and_curvature_are_those_of_the_users_model(kind: str):
    runs = runs_of(kind, [1, 2])
    params, batch = runs.start(), runs.next_batch()
    grads, losses = runs.evaluate(params, batch)
    generator = torch.Generator().manual_seed(3)
    vector = {key: torch.randn(value.shape, generator=generator) for key, value in params.items()}
    curved = runs.hessian_product(params, batch, vector)
    for index in range(2):
        own, loss = by_hand(kind, batch, index)
        assert len(own) == len(params)
        torch.testing.assert_close(losses[index], loss)
        expected = torch.autograd.grad(loss, own, create_graph=True)
        along = [vector[key][index] for key in params]
        twice = torch.autograd.grad(expected, own, along, allow_unused=True, materialize_grads=True)
        for key, start, first, second in zip(params, own, expected, twice, strict=True):
            assert torch.equal(params[key][index], start)
            torch.testing.assert_close(grads[key][index], first, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(curved[key][index], second, rtol=1e-3, atol=1e-5)


def test_runs_start_and_draw_differently_and_each_is_the_same_whatever_ran_before():
    first = runs_of("dropout", [1, 2])
    params, batch = first.start(), first.next_batch()
    value = first.evaluate(params, batch)[1]
    assert value[0] != value[1]
    assert not torch.equal(params["head.weight"][0], params["head.weight"][1])
    torch.rand(7)
    again = runs_of("dropout", [1, 2])
    assert torch.equal(again.evaluate(again.start(), again.next_batch())[1], value)
    assert first.evaluate(params, first.next_batch())[1][0] != value[0]


def test_running_statistics_are_no_memory_between_calls():
    runs = runs_of("convolution", [1])
    params, batch = runs.start(), runs.next_batch()
    value = runs.evaluate(params, batch)[1]
    runs.evaluate(params, runs.next_batch())
    assert torch.equal(runs.evaluate(params, batch)[1], value)


def test_no_loss_builds_a_model_anew_however_many_runs_there_are(monkeypatch: pytest.MonkeyPatch):
    runs = runs_of("regression", list(range(own_model.BUILT + 6)))
    monkeypatch.delattr(own_model, "build")
    runs.evaluate(runs.start(), runs.next_batch())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "own_models:from_an_iterator",
            "under one seed: data, start and minibatches must be drawn from",
        ),
        (
            "own_models:with_unseeded_data",
            r"under one seed: .* not come from .* np\.random\.default_rng",
        ),
        (
            "own_models:of_no_tensor",
            "must return a tensor of one element that depends on the param",
        ),
        ("own_models:in_double", "parameters must be float32 but some are torch.float64"),
        ("own_models:regresion", "own_models has no function 'regresion'; it has: .*regression"),
        ("own_models", "model must be 'module:function' but is 'own_models'"),
    ],
)
def test_a_function_that_cannot_be_learned_on_is_refused_with_the_recipe(
    tmp_path: Path, model: str, message: str
):
    path = tmp_path / "recipe.toml"
    text = RECIPE.format(model="regression", second="false", updates=1)
    path.write_text(text.replace("own_models:regression", model))
    with pytest.raises(RecipeError, match=message):
        read_recipe(path)


@pytest.mark.parametrize(("kind", "second"), [("regression", "false"), ("dropout", "true")])
def test_a_rule_is_learned_on_it_and_the_same_again_after_a_break(
    tmp_path: Path, kind: str, second: str
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(model=kind, second=second, updates=4))
    expected = run(path, output=whole, progress=False)
    path.write_text(RECIPE.format(model=kind, second=second, updates=2))
    half = run(path, output=broken, progress=False)
    assert half.sha256 != expected.sha256
    path.write_text(RECIPE.format(model=kind, second=second, updates=4))
    assert run(path, output=broken, progress=False, resume=True).sha256 == expected.sha256
