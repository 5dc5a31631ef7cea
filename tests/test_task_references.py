"""The families' losses against torch.nn, torch.distributions and formulas worked by hand."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from learned_optim.tasks import attention, nets, text
from learned_optim.tasks.datasets import DATA_VARIABLE, DataUnavailable
from learned_optim.tasks.differential_equation import (
    EQUATIONS,
    SPEED,
    DifferentialEquationTask,
)
from learned_optim.tasks.finite_regression import FiniteRegressionTask
from learned_optim.tasks.ill_conditioned_quadratic import IllConditionedQuadraticTask
from learned_optim.tasks.logistic_regression import LogisticRegressionTask
from learned_optim.tasks.matrix_factorisation import MatrixFactorisationTask
from learned_optim.tasks.memory import QUESTIONS, MemoryTask
from learned_optim.tasks.rastrigin import RastriginTask
from learned_optim.tasks.raw_regression import RawRegression
from learned_optim.tasks.resnet import batch_norm
from learned_optim.tasks.rnn_lm import RNNLanguageModelTask
from learned_optim.tasks.rosenbrock import RosenbrockTask
from learned_optim.tasks.sine_fit import SineFitTask
from learned_optim.tasks.teacher_student import TeacherStudent
from learned_optim.tasks.transformer_lm import (
    TransformerLanguageModel,
    TransformerLanguageModelTask,
)
from learned_optim.tasks.vae import VAETask
from learned_optim.tasks.vit import ViT


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_recurrent_language_model_equals_torch_nn(cell):
    task = RNNLanguageModelTask(text.Corpus("generated", alphabet=5), cell, 6, 7, 3)
    params, _ = task.init(generator())
    batch = task.batch(generator(1))
    module = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell](6, 6, batch_first=True)
    with torch.no_grad():
        module.weight_ih_l0.copy_(params["input.weight"])
        module.bias_ih_l0.copy_(params["input.bias"])
        module.weight_hh_l0.copy_(params["recurrent.weight"])
        module.bias_hh_l0.zero_()
        hidden, _ = module(params["embedding"][batch["tokens"][:, :-1]])
    logits = functional.linear(hidden, params["head.weight"], params["head.bias"])
    expected = functional.cross_entropy(logits.flatten(0, 1), batch["tokens"][:, 1:].flatten())
    torch.testing.assert_close(task.loss(params, batch), expected)


@pytest.mark.parametrize("causal", [True, False])
def test_a_block_equals_a_layer_of_torch_nn(causal):
    layer = nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    params = attention.block_params(generator(), "b", 8, 1)
    params = {k: v + 0.3 * torch.randn(v.shape, generator=generator(1)) for k, v in params.items()}
    pairs = {
        "self_attn.in_proj_": "attention.",
        "self_attn.out_proj.": "mix.",
        "linear1.": "expand.",
        "linear2.": "contract.",
        "norm1.": "norm0.",
        "norm2.": "norm1.",
    }
    state = {
        theirs + part: params[f"b.{ours}{part}"]
        for theirs, ours in pairs.items()
        for part in ("weight", "bias")
    }
    layer.load_state_dict(state)
    x = torch.randn(3, 5, 8, generator=generator(2))
    mask = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
    torch.testing.assert_close(attention.block(params, "b", x, 2, causal=causal), layer(x, mask))


def test_a_language_model_sees_no_later_character():
    task = TransformerLanguageModelTask(text.Corpus("generated", alphabet=5), 2, 8, 2, 6, 1)
    params, _ = task.init(generator())
    tokens = task.batch(generator(1))["tokens"]
    changed = tokens.clone()
    changed[0, -2] = (tokens[0, -2] + 1) % 5
    embedded = [nets.embed(params["embedding"], t[:, :-1]) for t in (tokens, changed)]
    outputs = [attention.block(params, "block0", x, 2, causal=True) for x in embedded]
    assert torch.equal(outputs[0][:, :-1], outputs[1][:, :-1])
    assert not torch.equal(outputs[0][:, -1], outputs[1][:, -1])


def test_batch_norm_has_mean_zero_and_variance_one_in_every_channel():
    x = 3.0 + 2.0 * torch.randn(16, 4, 5, 5, generator=generator())
    y = batch_norm(nets.norm_params("n", 4), "n", x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(4), atol=1e-4, rtol=0)


def test_a_vae_loss_is_the_bound_of_torch_distributions():
    task = VAETask(
        dataset="digits",
        depth=1,
        width=6,
        latent=3,
        activation="tanh",
        scheme="glorot",
        batch_size=4,
        pool=1,
    )
    params, _ = task.init(generator())
    batch = task.batch(generator(1))
    x = batch["x"].flatten(1)
    code = nets.mlp(params, x, 2, "tanh", prefix="encoder")
    q = torch.distributions.Normal(code[:, :3], functional.softplus(code[:, 3:]) + 1e-3)
    divergence = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    decoded = nets.mlp(params, q.loc + q.scale * batch["noise"], 2, "tanh", prefix="decoder")
    pixel = torch.distributions.Bernoulli(logits=decoded, validate_args=False)
    expected = (divergence.sum(-1) - pixel.log_prob(x).sum(-1)).mean()
    torch.testing.assert_close(task.loss(params, batch), expected)


@pytest.mark.parametrize("rotated", [True, False])
def test_an_ill_conditioned_quadratic_has_the_spectrum_and_the_minimum_it_says(rotated):
    task = IllConditionedQuadraticTask(5, 1e4, 10.0, rotated, 1.0)
    params, batch = task.init(generator())
    batch = {key: value.double() for key, value in batch.items()}
    theta = {"theta": params["theta"].double()}
    hessian = torch.func.jacrev(torch.func.grad(task.loss))(theta, batch)["theta"]["theta"]
    expected = torch.tensor([1e-3, 1e-2, 1e-1, 1.0, 10.0], dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.eigvalsh(hessian), expected, rtol=1e-3, atol=1e-6)
    assert float(task.loss({"theta": batch["target"]}, batch)) == 0.0


def test_the_valley_has_its_minimum_and_the_walls_and_the_growth_it_says():
    task = RosenbrockTask(1, 100.0, 0.3)
    floor = 2 * math.sqrt(2) - 2
    assert float(task.loss({"x": torch.ones(1), "y": torch.tensor([floor])}, {})) < 1e-10
    small = {"x": torch.tensor([0.1]), "y": torch.tensor([0.5])}
    classical = (1 - 0.1) ** 2 + 100 * (0.5 - 0.1**2) ** 2
    assert float(task.loss(small, {})) == pytest.approx(classical, rel=1e-3)
    far = {"x": torch.tensor([1e15]), "y": torch.tensor([-1e15])}
    grads, loss = torch.func.grad_and_value(task.loss)(far, {})
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in grads.values())


def test_rastrigin_is_zero_at_its_target_and_has_a_minimum_in_every_cell():
    task = RastriginTask(3, 10.0, 1.0)
    _, batch = task.init(generator())
    best = batch["basis"].mT @ batch["target"]
    assert float(task.loss({"theta": best}, batch)) < 1e-5
    beside = {"theta": best + batch["basis"].mT @ torch.tensor([1.0, 0.0, 0.0])}
    assert float(task.loss(beside, batch)) == pytest.approx(1 / 3, rel=1e-3)


def test_logistic_regression_is_the_binary_cross_entropy_of_badly_scaled_features():
    task = LogisticRegressionTask(4, 3.0, 10.0, 0.1, 64)
    _, constants = task.init(generator())
    batch = constants | task.batch(generator(1))
    scales = batch["scale"].sort().values
    torch.testing.assert_close(scales[1:] / scales[:-1], torch.full((3,), 10.0))
    weight, bias = torch.randn(4, generator=generator(2)), torch.tensor([0.3])
    labels = (batch["uniform"] < torch.sigmoid(10.0 * batch["z"] @ batch["direction"])).float()
    logits = (batch["z"] * batch["scale"]) @ weight + bias
    expected = functional.binary_cross_entropy_with_logits(logits, labels)
    actual = task.loss({"weight": weight, "bias": bias}, batch)
    torch.testing.assert_close(actual, expected + 0.05 * weight.square().sum())
    assert task.loss({"weight": 1e9 * weight, "bias": bias}, batch | {}).isfinite()


def test_a_factorisation_without_noise_reaches_zero_at_the_rank_it_says():
    task = MatrixFactorisationTask(8, 6, 2, 0, 1.0, 0.0, 0.1)
    _, batch = task.init(generator())
    u, s, v = torch.linalg.svd(batch["matrix"])
    assert float(s[2]) < 1e-5 < float(s[1])
    factors = {"left": u[:, :2] * s[:2], "right": v[:2].mT}
    assert float(task.loss(factors, batch)) < 1e-10


def test_raw_targets_occur_and_are_large():
    family = TeacherStudent(target_scale=100.0, noise=0.0)
    losses = []
    for task in (family.sample(generator()), RawRegression().sample(generator())):
        params, constants = task.init(generator(1))
        losses.append(float(task.loss(params, constants | task.batch(generator(2)))))
    assert min(losses) > 1e3


def test_a_sine_fit_sees_the_pixel_at_the_coordinates():
    task = SineFitTask("digits", 8, 1, 3, 10.0, 4)
    params, batch = task.init(generator())
    batch |= {"index": torch.tensor([0, 7, 56, 63])}
    corners = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    hidden = torch.sin(10.0 * nets.dense(params, "layer0", corners))
    output = nets.dense(params, "layer1", hidden).squeeze(-1)
    expected = (output - batch["pixels"].view(8, 8)[[0, 0, 7, 7], [0, 7, 0, 7]]).square().mean()
    torch.testing.assert_close(task.loss(params, batch), expected)


SOLUTIONS = {
    "poisson": lambda w, t, x: torch.sin(w * t) * torch.sin(w * x),
    "heat": lambda w, t, x: torch.exp(-t) * torch.sin(w * x),
    "advection": lambda w, t, x: torch.sin(w * (x - SPEED * t)),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_nothing_is_wrong_with_the_solution_of_an_equation(equation):
    task = DifferentialEquationTask(equation, 2, 2, 8, 50)
    batch = {key: value.double() for key, value in task.batch(generator()).items()}
    solution = functools.partial(SOLUTIONS[equation], 2 * math.pi)
    parts = task.wrong(solution, batch)
    assert [len(part) for part in parts] == [50, 25, 25]
    for part in parts:
        torch.testing.assert_close(part, torch.zeros_like(part), rtol=0, atol=1e-12)
    # Another function is wrong everywhere that can be.
    other = task.wrong(lambda t, x: solution(t, x) + t * t + x, batch)
    assert all(part.abs().max() > 0.01 for part in other)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_memory_task_asks_for_what_its_sequences_hold(question):
    task = MemoryTask(question, "gru", 20, 4, 200)
    batch = task.batch(generator())
    numbers, marks = batch["x"].unbind(-1)
    answers = {
        "first": [row[0] for row in numbers.tolist()],
        "largest": [max(row) for row in numbers.tolist()],
        "count": [sum(row) / 3 for row in marks.tolist()],
    }
    assert batch["y"].tolist() == pytest.approx(answers[question])
    assert set(marks.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_memory_task_reads_its_sequences_as_torch_does(cell):
    task = MemoryTask("largest", cell, 7, 5, 3)
    params, batch = task.init(generator())[0], task.batch(generator(1))
    network = {"gru": nn.GRU, "lstm": nn.LSTM}[cell](2, 5, batch_first=True)
    with torch.no_grad():
        network.weight_ih_l0.copy_(params["input.weight"])
        network.weight_hh_l0.copy_(params["recurrent.weight"])
        network.bias_ih_l0.copy_(params["input.bias"])
        network.bias_hh_l0.zero_()
        last = network(batch["x"])[0][:, -1]
        expected = (nets.dense(params, "head", last).squeeze(-1) - batch["y"]).square().mean()
    torch.testing.assert_close(task.loss(params, batch), expected)


@pytest.mark.parametrize("scheme", nets.SCHEMES)
def test_initial_weights_have_the_variance_of_their_source(scheme):
    drawn = nets.weight(generator(), (300, 20, 3, 3), scheme, gain=2.0)
    fan_in, fan_out = 180, 2700
    variance = {
        "he": 2 / fan_in,
        "glorot": 2 / (fan_in + fan_out),
        "lecun": 1 / fan_in,
        "torch": 1 / (3 * fan_in),
    }[scheme]
    assert float(drawn.var()) == pytest.approx(4.0 * variance, rel=0.05)


def test_a_chain_is_a_function_of_its_seed_and_its_next_character_can_be_guessed():
    corpus = text.Corpus("generated", alphabet=6, order=1, seed=3)
    tokens = corpus.tokens("train")
    assert torch.equal(tokens, text.Corpus("generated", 6, 1, 3).tokens("train"))
    assert not torch.equal(tokens, corpus._replace(seed=4).tokens("train"))
    assert set(tokens.tolist()) <= set(range(6))
    counts = torch.zeros(6, 6).index_put_(
        (tokens[:-1], tokens[1:]), torch.ones(len(tokens) - 1), accumulate=True
    )
    joint = counts / counts.sum()
    conditional = -(joint * (joint / joint.sum(1, keepdim=True)).clamp_min(1e-9).log()).sum()
    assert float(conditional) < 0.7 * math.log(6)


def test_windows_are_inputs_and_targets_of_one_split():
    corpus = text.Corpus("generated", alphabet=6, seed=1)
    train = "".join(map(str, corpus.tokens("train").tolist()))
    test = "".join(map(str, corpus.tokens("test").tolist()))
    pairs = (
        (corpus.batch(generator(), 4, 24, "train"), train),
        (corpus.batch(generator(), 4, 24, "test"), test),
    )
    for batch, whole in pairs:
        for window in batch["tokens"]:
            assert "".join(map(str, window.tolist())) in whole


def test_a_missing_text_says_where_it_must_be(monkeypatch, tmp_path):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(DataUnavailable, match=r"text/tinyshakespeare.txt is not in the folder"):
        text.Corpus("tinyshakespeare").tokens("train")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "tinyshakespeare.txt").write_text("to be")
    with pytest.raises(DataUnavailable, match="has 5 different characters, not 65"):
        text.Corpus("tinyshakespeare").tokens("train")


def test_a_text_is_read_with_its_alphabet_in_order(monkeypatch, tmp_path):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    (tmp_path / "text").mkdir()
    content = "".join(chr(40 + i) for i in reversed(range(65)))
    (tmp_path / "text" / "tinyshakespeare.txt").write_text(content)
    corpus = text.Corpus("tinyshakespeare")
    both = torch.cat([corpus.tokens("train"), corpus.tokens("test")])
    assert both.tolist() == list(reversed(range(65)))


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        (ViT, {"patch": 3}, "3 does not divide 8, that of 'digits' with pool 1"),
        (ViT, {"width": 10, "heads": 4}, "width must be a multiple of heads: 10 is not of 4"),
        (TransformerLanguageModel, {"heads": [2, 3]}, "16 is not of 3"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(family, config, message):
    with pytest.raises(ValueError, match=message):
        family(**config)


def test_a_finite_regression_is_the_mean_squared_error_of_examples_drawn_once():
    task = FiniteRegressionTask(5, 400, 1, 6, "tanh", "he", 10.0, 0.5, 2.0, 16)
    params, constants = task.init(generator())
    x, y = constants["x"], constants["y"]
    assert x.shape == (656, 5)
    torch.testing.assert_close(x.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0), torch.ones(5))
    assert (y.mean() / 10).item() == pytest.approx(2.0, abs=0.1)
    assert (y.std() / 10).item() == pytest.approx(1.0, abs=0.1)
    module = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))
    names = {f"{2 * i}.{part}": f"layer{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
    module.load_state_dict({ours: params[theirs] for ours, theirs in names.items()})
    train = [task.batch(generator(k))["index"] for k in range(300)]
    test = [task.batch(generator(k), "test")["index"] for k in range(300)]
    for parts, seen in ((train, range(400)), (test, range(400, 656))):
        index = torch.cat(parts)
        assert set(index.tolist()) == set(seen)
        batch = {"index": index[:16]}
        expected = functional.mse_loss(module(x[index[:16]]).squeeze(-1), y[index[:16]])
        torch.testing.assert_close(task.loss(params, constants | batch), expected)
