"""The paper's two families are what the paper says; what every family must do is tested beside."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from learned_optim.tasks import TASK_FAMILIES, MnistMLP, Quadratic

DIGITS = {"dataset": "digits"}
CONFIGS = {"mnist_mlp": DIGITS}

both = pytest.mark.parametrize("name", ["quadratic", "mnist_mlp"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(name, **config):
    return TASK_FAMILIES[name](**CONFIGS.get(name, {}), **config).sample(generator())


def copied(tensors):
    return {key: value.clone() for key, value in tensors.items()}


def same_image(left, right):
    """`(B, pixels)`, `(N, pixels)` -> `(B, N)` bool."""
    return (left.unsqueeze(1) == right).all(-1)


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@both
def test_the_loss_is_a_finite_scalar_and_changes_nothing(name):
    task = make(name)
    params, constants = task.init(generator(1))
    batch = constants | task.batch(generator(2))
    before = copied(params), copied(batch)
    loss = task.loss(params, batch)
    assert loss.shape == ()
    assert loss.isfinite()
    assert torch.equal(loss, task.loss(params, batch))
    assert equal(params, before[0])
    assert equal(batch, before[1])


@both
def test_everything_random_comes_from_the_generator_that_is_passed(name):
    task = make(name)
    state = torch.random.get_rng_state()
    draws = [(*task.init(generator(seed)), task.batch(generator(seed))) for seed in (1, 1, 2)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not equal(draws[0][0], draws[2][0])
    assert not equal(draws[0][1] | draws[0][2], draws[2][1] | draws[2][2])


@both
def test_one_generator_gives_fresh_draws(name):
    task, shared = make(name), generator(1)
    assert not equal(task.init(shared)[0], task.init(shared)[0])
    if task.batch(shared):
        assert not equal(task.batch(shared), task.batch(shared))


@both
def test_vmap_of_grad_over_runs_equals_a_loop(name):
    task = make(name, init_std=0.3)
    starts = [task.init(generator(seed)) for seed in range(3)]
    batches = [c | task.batch(generator(9 + r)) for r, (_, c) in enumerate(starts)]
    params = {k: torch.stack([p[k] for p, _ in starts]) for k in starts[0][0]}
    batch = {k: torch.stack([b[k] for b in batches]) for k in batches[0]}
    evaluate = torch.func.grad_and_value(task.loss)
    grads, losses = torch.func.vmap(evaluate)(params, batch)
    for run, ((start, _), one) in enumerate(zip(starts, batches, strict=True)):
        expected, loss = evaluate(start, one)
        torch.testing.assert_close(losses[run], loss)
        for key, value in expected.items():
            torch.testing.assert_close(grads[key][run], value)


@both
def test_gradient_descent_lowers_the_loss(name):
    task = make(name, init_std=0.1)
    params, constants = task.init(generator(1))
    batch = constants | task.batch(generator(2))
    evaluate = torch.func.grad_and_value(task.loss)
    rate = {"quadratic": 5e-3, "mnist_mlp": 2.0}[name]
    losses = []
    for _ in range(60):
        grads, loss = evaluate(params, batch)
        losses.append(float(loss))
        params = {key: value - rate * grads[key] for key, value in params.items()}
    assert losses[-1] < 0.6 * losses[0]


def test_a_quadratic_is_the_squared_norm_of_the_residual():
    task = make("quadratic", dim=3, gain=2.0)
    params, constants = task.init(generator(4))
    residual = [
        sum(float(constants["W"][i, j] * params["theta"][j]) for j in range(3))
        - float(constants["y"][i])
        for i in range(3)
    ]
    assert float(task.loss(params, constants)) == pytest.approx(sum(r * r for r in residual))


def test_quadratics_have_gaussian_matrices_targets_and_starts():
    task, shared = make("quadratic", init_std=0.5, gain=3.0), generator(6)
    draws = [task.init(shared) for _ in range(400)]
    for samples, std in (
        (torch.stack([c["W"] for _, c in draws]), 3.0),
        (torch.stack([c["y"] for _, c in draws]), 1.0),
        (torch.stack([p["theta"] for p, _ in draws]), 0.5),
    ):
        assert samples.shape[1:] in {(10, 10), (10,)}
        # Four standard errors of a mean, of a variance and of a fourth moment.
        count, scaled = samples.numel(), samples / std
        assert abs(float(scaled.mean())) < 4 / math.sqrt(count)
        assert abs(float(scaled.square().mean()) - 1) < 4 * math.sqrt(2 / count)
        assert abs(float(scaled.pow(4).mean()) - 3) < 4 * math.sqrt(96 / count)


def test_the_base_network_has_the_papers_15910_parameters():
    params, constants = MnistMLP().sample(generator()).init(generator())
    assert {key: tuple(value.shape) for key, value in params.items()} == {
        "w0": (20, 784),
        "b0": (20,),
        "w1": (10, 20),
        "b1": (10,),
    }
    assert sum(value.numel() for value in params.values()) == 15_910
    assert constants == {}
    assert torch.cat([value.flatten() for value in params.values()]).std().item() == pytest.approx(
        0.01, rel=0.02
    )


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "tanh", "elu", "gelu", "silu"])
def test_the_network_equals_torch_nn(activation):
    module = {
        "sigmoid": torch.nn.Sigmoid,
        "relu": torch.nn.ReLU,
        "tanh": torch.nn.Tanh,
        "elu": torch.nn.ELU,
        "gelu": torch.nn.GELU,
        "silu": torch.nn.SiLU,
    }[activation]
    task = make("mnist_mlp", activation=activation, layers=2, hidden=7, init_std=0.3)
    params, _ = task.init(generator(1))
    batch = task.batch(generator(2))
    net = torch.nn.Sequential(
        torch.nn.Linear(64, 7), module(), torch.nn.Linear(7, 7), module(), torch.nn.Linear(7, 10)
    )
    names = [f"{kind}{layer}" for layer in range(3) for kind in "wb"]
    with torch.no_grad():
        for parameter, name in zip(net.parameters(), names, strict=True):
            parameter.copy_(params[name])
    expected = functional.cross_entropy(net(batch["x"]), batch["y"])
    torch.testing.assert_close(task.loss(params, batch), expected)


def test_minibatches_are_pixels_between_0_and_1_with_their_labels():
    task = MnistMLP(batch_size=500, dataset="digits").sample(generator())
    batch, whole = task.batch(generator(1)), task.full("train")
    assert batch["x"].shape == (500, 64)
    assert batch["x"].dtype == torch.float32
    assert batch["y"].dtype == torch.int64
    assert (batch["x"].min(), batch["x"].max()) == (0, 1)
    # Every drawn image carries the label that it has in the data set.
    found = same_image(batch["x"], whole["x"])
    assert found.any(1).all()
    assert torch.equal(whole["y"][found.int().argmax(1)], batch["y"])


def test_train_and_test_minibatches_come_from_different_images():
    task = MnistMLP(batch_size=200, dataset="digits").sample(generator())
    train, test = task.full("train"), task.full("test")
    assert len(train["y"]) + len(test["y"]) == 1797
    drawn = task.batch(generator(1), "test")["x"]
    assert same_image(drawn, test["x"]).any(1).all()
    assert not same_image(drawn, train["x"]).any()


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        (Quadratic, {"dim": 0}, r"dim must be in \[1, 10000\] but is 0"),
        (Quadratic, {"init_std": -1.0}, r"init_std must be in \[0, 1e3\] but is -1.0"),
        (Quadratic, {"gain": float("nan")}, r"gain must be in \(0, 1e3\] but is nan"),
        (MnistMLP, {"hidden": 0}, r"hidden must be in \[1, 4096\] but is 0"),
        (MnistMLP, {"layers": 33}, r"layers must be in \[1, 32\] but is 33"),
        (MnistMLP, {"batch_size": 0}, r"batch_size must be in \[1, 60000\] but is 0"),
        (MnistMLP, {"init_std": float("inf")}, r"init_std must be in \[0, 1e3\] but is inf"),
        (MnistMLP, {"activation": "step"}, r"activation must be one of .* but is 'step'"),
        (MnistMLP, {"dataset": "cifar10"}, r"dataset must be one of .* but is 'cifar10'"),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(family, config, message):
    with pytest.raises(ValueError, match=message):
        family(**config)
