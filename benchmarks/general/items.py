"""The fixed problems: one list to choose weights by, three that nothing is chosen by.

`validation`: the families of `META_VALIDATION` and fresh draws from families that meta-training
samples. `held_out`: families, data and losses of `HELD_OUT`, several of each in several sizes,
small enough that a hundred runs side by side train on one core. Both hold the kinds of problem on
which steps relative to a tensor's scale get stuck: bottlenecks whose ReLUs die, targets nobody
rescaled, convex problems that start at zero. `fine_tuning`: networks of the held-out families that
were trained before, on other data (`benchmarks.general.fine_tuning`). `domains`: kinds of problem
that none of these have (`benchmarks.general.domains`), drawn up before the rule had seen any; since
then `word_vectors` has had a say in the rule (docs/diary_default.md), the other nine have not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.general import domains
from benchmarks.general.domains import Fixed
from benchmarks.general.fine_tuning import FineTuning
from learned_optim import tasks
from learned_optim.meta_training.seeding import derive_seed, generator
from learned_optim.tasks.base import Task, TaskFamily
from learned_optim.tasks.splits import META_TEST, META_TRAIN, META_VALIDATION

SEEDS = 3


@dataclass(frozen=True)
class Item:
    """One problem.

    Attributes:
        name: unique in its list; the draw of the task and its runs follow from it.
        family: what the task is drawn from.
        steps: length of the runs.
    """

    name: str
    family: TaskFamily
    steps: int

    @property
    def task(self) -> Task:
        """The same at every call."""
        return self.family.sample(generator("generalization", "task", self.name))

    def seeds(self, purpose: str = "train") -> list[int]:
        """Of the runs: start, constants and minibatches follow from each."""
        return [derive_seed("generalization", purpose, self.name, run) for run in range(SEEDS)]


def _test(name: str, **changes: Any) -> TaskFamily:  # noqa: ANN401
    return replace(META_TEST[name], **changes)


def _train(name: str, **changes: Any) -> TaskFamily:  # noqa: ANN401
    return replace(META_TRAIN[name], **changes)


_VALIDATION = (
    *(Item(name, family, 500) for name, family in META_VALIDATION.items()),
    Item("mlp_mnist", _train("mlp_mnist"), 500),
    Item("autoencoder_relu", _train("autoencoder", activation="relu", scheme="he"), 500),
    Item("raw_targets", _train("teacher_student", target_scale=100.0, input_scale=3.0), 500),
    Item("zero_start", _train("softmax_regression", start=0.0), 500),
    Item("transformer_chain", _train("transformer_lm", width=16), 500),
    Item("wide_targets_long", META_VALIDATION["wide_targets"], 2000),
)

_TEXT = {"length": 16, "batch_size": 16}
_HELD_OUT = (
    Item("cnn_cifar10", _test("cnn_cifar10", pool=2, width=8, batch_size=32), 500),
    Item(
        "cnn_gelu_cifar10",
        _test("cnn_cifar10", pool=4, width=16, depth=2, activation="gelu", head="average"),
        500,
    ),
    Item("resnet_cifar10", _test("resnet_cifar10", pool=4, stages=2, batch_size=32), 500),
    Item(
        "resnet_mnist",
        _test("resnet_cifar10", dataset="mnist", width=4, stages=2, batch_size=32),
        500,
    ),
    Item("lstm_text", _test("rnn_text", width=48, **_TEXT), 500),
    Item("gru_text", _test("rnn_text", cell="gru", width=32, **_TEXT), 1000),
    Item("transformer_text", _test("transformer_text", width=32, **_TEXT), 500),
    Item("transformer_wide_text", _test("transformer_text", width=64, depth=1, **_TEXT), 500),
    Item("vit_cifar10", _test("vit_cifar10", pool=2, width=32, batch_size=32), 500),
    Item(
        "vit_mnist",
        _test("vit_cifar10", dataset="mnist", pool=2, patch=7, width=32, heads=2, batch_size=32),
        500,
    ),
    Item("deep_mlp_cifar10", _test("deep_mlp_cifar10", pool=4, width=64), 1000),
    Item(
        "wide_mlp_cifar10",
        _test("deep_mlp_cifar10", pool=4, width=192, depth=2, batch_size=32),
        500,
    ),
    Item("autoencoder_mnist", _test("autoencoder_mnist", pool=2, width=64, batch_size=32), 1000),
    Item(
        "autoencoder_narrow_mnist",
        _test("autoencoder_mnist", pool=2, width=96, bottleneck=3, batch_size=32),
        500,
    ),
    Item("vae_mnist", _test("vae_mnist", pool=2, width=64, batch_size=32), 1000),
    Item("matrix_factorisation", META_TEST["matrix_factorisation"], 1000),
    Item(
        "matrix_factorisation_noisy",
        _test("matrix_factorisation", rows=40, columns=30, noise=0.1, start=1.0),
        500,
    ),
    Item("raw_regression", _test("raw_regression", activation="relu"), 1000),
    Item("raw_regression_tanh", _test("raw_regression", activation="tanh", depth=1), 1000),
    Item("logistic", tasks.LogisticRegression(decades=0.0, margin=2.0, features=30), 500),
    Item("ill_conditioned_logistic", META_TEST["ill_conditioned_logistic"], 1000),
    Item("deep_mlp_cifar10_long", _test("deep_mlp_cifar10", pool=4, width=64), 2000),
    Item("raw_regression_long", _test("raw_regression", activation="relu", width=32), 10_000),
)

_SMALL_TEXT = {"width": 48, "length": 24, "batch_size": 16}
_SMALL_LM = _test("transformer_text", depth=2, **_SMALL_TEXT)
_SMALL_MLP = _test("deep_mlp_cifar10", pool=4, width=64)
_SMALL_VIT = _test(
    "vit_cifar10", dataset="mnist", pool=2, patch=7, width=32, heads=2, batch_size=32
)
_FINE_TUNING = (
    Item("transformer_late_text", FineTuning(_SMALL_LM, "early", "late", 3000), 500),
    Item("transformer_adapters", FineTuning(_SMALL_LM, "early", "late", 3000, rank=4), 500),
    Item("transformer_same_text", FineTuning(_SMALL_LM, "early", "early", 3000), 500),
    Item(
        "gru_late_text",
        FineTuning(_test("rnn_text", cell="gru", **_SMALL_TEXT), "early", "late"),
        500,
    ),
    Item(
        "resnet_new_labels",
        FineTuning(
            _test("resnet_cifar10", pool=4, stages=2, batch_size=32),
            "coarse",
            "whole",
            fresh="head",
        ),
        500,
    ),
    Item("mlp_new_labels", FineTuning(_SMALL_MLP, "coarse", "whole", fresh="layer6"), 500),
    Item("vit_turned", FineTuning(_SMALL_VIT, "whole", "turned"), 500),
    Item(
        "autoencoder_inverted",
        FineTuning(
            _test("autoencoder_mnist", pool=2, width=64, batch_size=32), "whole", "inverted"
        ),
        500,
    ),
)

_DOMAINS = (
    Item("adding", Fixed(domains.Adding()), 1000),
    Item("bandit", Fixed(domains.Bandit()), 1000),
    Item("burgers", Fixed(domains.Burgers()), 2000),
    Item("contrastive", Fixed(domains.Contrastive()), 500),
    Item("diffusion", Fixed(domains.Diffusion()), 1000),
    Item("experts", Fixed(domains.Experts()), 500),
    Item("graph", Fixed(domains.Graph()), 300),
    Item("label_noise", Fixed(domains.LabelNoise()), 500),
    Item("photograph", Fixed(domains.Photograph()), 1000),
    Item("word_vectors", Fixed(domains.WordVectors()), 1000),
)

SPLITS: dict[str, tuple[Item, ...]] = {
    "validation": _VALIDATION,
    "held_out": _HELD_OUT,
    "fine_tuning": _FINE_TUNING,
    "domains": _DOMAINS,
}


# Parts of a list that are judged besides: what each leaves out. Raw regressions showed weaknesses
# that were then mended, and so did three problems of other kinds; MNIST's images are among those of
# training families, whatever the network.
_RAW = ("raw_regression", "raw_regression_tanh", "raw_regression_long")
_ON_MNIST = tuple(item.name for item in _HELD_OUT if "mnist" in item.name)
LESS: dict[str, dict[str, tuple[str, ...]]] = {
    "held_out": {
        "without raw regressions": _RAW,
        "without these and MNIST": _RAW + _ON_MNIST,
    },
    "domains": {"without three that showed weaknesses": ("adding", "burgers", "word_vectors")},
}


def chosen(split: str, names: Sequence[str] = ()) -> list[Item]:
    """The problems of a list, or those of them that are named.

    Raises:
        ValueError: for a name that the list does not have.
    """
    known = {item.name: item for item in SPLITS[split]}
    for name in names:
        if name not in known:
            raise ValueError(f"tasks must be among {sorted(known)} but one is {name!r}")
    return [known[name] for name in names or known]
