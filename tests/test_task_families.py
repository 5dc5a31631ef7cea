"""Every family of the registry: it vectorises, starts finite, learns, and refuses wrong values."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from learned_optim.meta_training.unroll import Runs
from learned_optim.tasks import TASK_FAMILIES
from learned_optim.tasks.axes import AxesFamily, choices
from learned_optim.tasks.mlp_classification import MLPClassification

# Families whose defaults need a file get a data set that comes with scikit-learn.
CONFIGS = {
    "cifar_conv": {"dataset": "digits", "batch_size": 32},
    "mnist_mlp": {"dataset": "digits", "init_std": 0.1},
    "own_model": {"model": "own_models:regression"},
    "neural_art": {"content": "waves", "style": "stripes", "size": 16},
}
# Adam's rate where 0.01 is too slow for 40 steps, or too fast: SIRENs have steep slopes.
RATES = {
    "ill_conditioned_quadratic": 0.03,
    "logistic_regression": 3e-3,
    "rastrigin": 0.03,
    "rosenbrock": 0.03,
    "sine_fit": 1e-3,
    "transformer_lm": 3e-3,
}

AXES = [name for name, family in TASK_FAMILIES.items() if issubclass(family, AxesFamily)]

everywhere = pytest.mark.parametrize("name", TASK_FAMILIES)


def make(name):
    return TASK_FAMILIES[name](**CONFIGS.get(name, {}))


def generator(seed):
    return torch.Generator().manual_seed(seed)


def double(tensors):
    return {k: v.double() if v.is_floating_point() else v for k, v in tensors.items()}


def adam(params, grads, moments, step, rate):
    """One step of Adam on a dictionary of tensors."""
    for key, grad in grads.items():
        first, second = moments[key]
        first.lerp_(grad, 0.1)
        second.lerp_(grad.square(), 0.01)
        scale = (second / (1 - 0.99**step)).sqrt() + 1e-8
        params[key] = params[key] - rate * first / (1 - 0.9**step) / scale
    return params


def losses_before_and_after(task, seed, steps, rate):
    """The mean loss on eight fixed minibatches, before and after `steps` steps of Adam."""
    runs = Runs(task, [seed])
    batches = [runs.next_batch() for _ in range(8)]
    params = dict(runs.start())
    moments = {
        key: (torch.zeros_like(value), torch.zeros_like(value)) for key, value in params.items()
    }
    before = sum(runs.evaluate(params, batch)[1].item() for batch in batches)
    for step in range(1, steps + 1):
        grads, _ = runs.evaluate(params, runs.next_batch())
        params = adam(params, grads, moments, step, rate)
    return before, sum(runs.evaluate(params, batch)[1].item() for batch in batches)


@everywhere
def test_twenty_tasks_start_with_a_finite_loss_and_gradients_that_are_not_all_zero(name):
    family = make(name)
    for seed in range(20):
        runs = Runs(family.sample(generator(seed)), [seed])
        grads, loss = runs.evaluate(runs.start(), runs.next_batch())
        assert loss.isfinite().all()
        assert all(grad.isfinite().all() for grad in grads.values())
        assert any(grad.any() for grad in grads.values())


@everywhere
def test_adam_lowers_the_loss(name):
    family = make(name)
    for seed in range(2):
        task = family.sample(generator(seed))
        before, after = losses_before_and_after(task, seed, 40, RATES.get(name, 0.01))
        assert after < 0.95 * before


@everywhere
def test_runs_and_perturbations_side_by_side_equal_each_alone(name):
    task = make(name).sample(generator(1))
    seeds = [3, 4]
    beside = Runs(task, seeds, perturbations=2)
    params = {
        key: value + 0.01 * torch.randn(value.shape, generator=generator(5))
        for key, value in beside.start().items()
    }
    grads, losses = beside.evaluate(params, beside.next_batch())
    for run, seed in enumerate(seeds):
        alone = Runs(task, [seed])
        batch = alone.next_batch()
        for k in range(2):
            one = {key: value[run, k][None] for key, value in params.items()}
            expected, loss = alone.evaluate(one, batch)
            torch.testing.assert_close(losses[run, k], loss[0], rtol=1e-4, atol=1e-5)
            for key, value in expected.items():
                scale = float(value.abs().max()) + 1e-6
                torch.testing.assert_close(
                    grads[key][run, k], value[0], rtol=1e-3, atol=1e-4 * scale
                )


@everywhere
def test_the_gradient_is_that_of_the_loss_in_double_precision(name):
    task = make(name).sample(generator(2))
    params, constants = task.init(generator(3))
    params, batch = double(params), double(constants | task.batch(generator(4)))
    grads = torch.func.grad(task.loss)(params, batch)
    directions = {
        key: torch.randn(value.shape, generator=generator(5), dtype=value.dtype)
        for key, value in params.items()
    }
    expected = sum(float((grads[key] * directions[key]).sum()) for key in params)
    moved = [
        float(task.loss({k: v + sign * 1e-7 * directions[k] for k, v in params.items()}, batch))
        for sign in (1, -1)
    ]
    assert (moved[0] - moved[1]) / 2e-7 == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", AXES)
def test_every_value_of_every_default_axis_is_drawn(name):
    family = make(name)
    assert isinstance(family, AxesFamily)
    fields = [field.name for field in dataclasses.fields(family)]
    drawn = [family.draw(generator(seed)) for seed in range(60)]
    for field in fields:
        assert {values[field] for values in drawn} == set(choices(family, field))


@pytest.mark.parametrize("name", AXES)
def test_the_same_generator_gives_the_same_task_start_and_minibatch(name):
    first, second = (make(name).sample(generator(7)) for _ in range(2))
    assert first == second
    (params, constants), (same, alike) = (task.init(generator(8)) for task in (first, second))
    batch, equal = (task.batch(generator(9)) for task in (first, second))
    for left, right in ((params, same), (constants, alike), (batch, equal)):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_fixing_one_axis_leaves_the_draws_of_the_others():
    free = [MLPClassification().draw(generator(seed)) for seed in range(5)]
    fixed = [MLPClassification(depth=7).draw(generator(seed)) for seed in range(5)]
    assert [values | {"depth": 7} for values in free] == fixed


def test_an_axis_is_a_value_or_a_list_and_the_family_can_be_hashed():
    family = MLPClassification(width=[8, 16], depth=[2], gain=1)
    assert (family.width, family.depth, family.gain) == ((8, 16), 2, 1.0)
    assert hash(family) == hash(MLPClassification(width=(8, 16), depth=2, gain=1.0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"width": []}, "width must be a value or a list of values but is empty"),
        ({"width": 0}, r"width must be in \[1, 16384\] but has 0"),
        ({"width": [8, True]}, "width must be of type int, or a list of it, but has True"),
        ({"width": 8.0}, "width must be of type int, or a list of it, but has 8.0"),
        ({"gain": float("nan")}, "gain must be in"),
        ({"activation": ["relu", "swish"]}, "activation must be among .* but has 'swish'"),
    ],
)
def test_a_wrong_axis_is_refused_with_its_value_and_the_range(config, message):
    with pytest.raises(ValueError, match=message):
        MLPClassification(**config)
