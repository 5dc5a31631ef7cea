"""Which families meta-training may sample, and which are kept for validation and for the test.

`PAPER_ONLY` are families of the 2016 paper's own experiments, which need CIFAR-10 itself: the
rules that reproduce them may too, and `check_together` keeps them out of every other recipe. They
are in none of the three sets here, and a rule trained on them is not to be shown on `META_TEST`.

`HELD_OUT` says what belongs to the test: a family, or a family or any family with a certain value
in one field. It is stated by what a task *is*, not by whole configurations, so that no change of a
width lets one slip into training. `check_trainable` is what the recipe parser asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from learned_optim import tasks
from learned_optim.tasks.augment import Augmentation
from learned_optim.tasks.axes import choices
from learned_optim.tasks.base import TaskFamily


@dataclass(frozen=True)
class HeldOut:
    """Tasks that only the test may use.

    Attributes:
        family: a family's name; None means any.
        field: the field that decides; None means every task of the family.
        value: of that field.
    """

    family: str | None = None
    field: str | None = None
    value: str | None = None

    def holds(self, family: TaskFamily) -> bool:
        """Whether `family` is, or can sample, such a task."""
        if self.family not in (None, family.name):
            return False
        if self.field is None:
            return True
        return hasattr(family, self.field) and self.value in choices(family, self.field)

    def __str__(self) -> str:
        where = f"family {self.family!r}" if self.family else "any family"
        return f"{where} with {self.field} = {self.value!r}" if self.field else where


HELD_OUT = (
    HeldOut(field="dataset", value="cifar10"),
    HeldOut(field="dataset", value="tinyshakespeare"),
    HeldOut("autoencoder", "dataset", "mnist"),
    HeldOut("resnet"),
    HeldOut("vit"),
    HeldOut("vae"),
    HeldOut("matrix_factorisation"),
    HeldOut("raw_regression"),
    HeldOut("logistic_regression"),
)

PAPER_ONLY = ("cifar_conv", "neural_art")

META_TEST: dict[str, TaskFamily] = {
    "cnn_cifar10": tasks.CNN(
        dataset="cifar10", depth=3, width=16, activation="relu", head="flatten", batch_size=64
    ),
    "resnet_cifar10": tasks.ResNet(dataset="cifar10", width=8, stages=3, batch_size=64, pool=2),
    "rnn_text": tasks.RNNLanguageModel(
        dataset="tinyshakespeare", cell="lstm", width=64, length=32, batch_size=32
    ),
    "transformer_text": tasks.TransformerLanguageModel(
        dataset="tinyshakespeare", depth=2, width=64, heads=4, length=32, batch_size=32
    ),
    "vit_cifar10": tasks.ViT(dataset="cifar10", patch=4, depth=2, width=64, heads=4, batch_size=64),
    "deep_mlp_cifar10": tasks.MLPClassification(
        dataset="cifar10",
        depth=6,
        width=128,
        activation="relu",
        layer_norm=False,
        scheme="he",
        gain=1.0,
        batch_size=64,
        objective="cross_entropy",
        pool=2,
    ),
    "autoencoder_mnist": tasks.Autoencoder(
        dataset="mnist", depth=2, width=128, bottleneck=8, activation="relu", batch_size=64
    ),
    "vae_mnist": tasks.VAE(dataset="mnist", depth=1, width=128, latent=8, batch_size=64),
    "matrix_factorisation": tasks.MatrixFactorisation(
        rows=100, columns=50, rank=5, extra=5, decades=1.0, noise=0.0, start=0.1
    ),
    "raw_regression": tasks.RawRegression(depth=2, width=64, batch_size=64),
    "ill_conditioned_logistic": tasks.LogisticRegression(
        features=100, decades=3.0, margin=10.0, decay=1e-4, batch_size=128
    ),
}

# Small and quick, and none of them in META_TRAIN: each has a value there that training never draws.
META_VALIDATION: dict[str, TaskFamily] = {
    "deep_silu_mlp": tasks.MLPClassification(
        dataset="digits", depth=4, width=24, activation="silu", layer_norm=False, gain=1.0
    ),
    "wide_targets": tasks.TeacherStudent(target_scale=30.0, width=48, input_scale=1.0),
    "narrow_autoencoder": tasks.Autoencoder(bottleneck=3, width=48, activation="relu"),
    "cnn_elu": tasks.CNN(activation="elu", depth=2, width=6),
    "gru_24": tasks.RNNLanguageModel(cell="gru", alphabet=24, width=24, length=12),
    "attention_24": tasks.TransformerLanguageModel(alphabet=24, width=24, depth=1, length=12),
    "waves_24": tasks.SineFit(image="waves", side=24, frequency=20.0),
    "quadratic_3000": tasks.IllConditionedQuadratic(dim=50, condition=3000.0),
}

META_TRAIN: dict[str, TaskFamily] = {
    "quadratic": tasks.Quadratic(),
    "ill_conditioned_quadratic": tasks.IllConditionedQuadratic(),
    "rosenbrock": tasks.Rosenbrock(),
    "rastrigin": tasks.Rastrigin(),
    "softmax_regression": tasks.SoftmaxRegression(),
    "mlp_classification": tasks.MLPClassification(),
    "mlp_mnist": tasks.MLPClassification(
        dataset="mnist", width=(16, 32), depth=(1, 2), batch_size=(16, 32, 64)
    ),
    "teacher_student": tasks.TeacherStudent(),
    "finite_regression": tasks.FiniteRegression(),
    "autoencoder": tasks.Autoencoder(),
    "cnn": tasks.CNN(),
    "cnn_mnist": tasks.CNN(dataset="mnist", pool=2, width=4, depth=2, batch_size=16),
    "rnn_lm": tasks.RNNLanguageModel(),
    "transformer_lm": tasks.TransformerLanguageModel(),
    "sine_fit": tasks.SineFit(),
    "differential_equation": tasks.DifferentialEquation(),
    "memory": tasks.Memory(),
}


def check_together(families: Iterable[TaskFamily]) -> None:
    """Refuse a mixture of `PAPER_ONLY` families with others.

    Raises:
        ValueError: naming them.
    """
    names = {_plain(family).name for family in families}
    if names & set(PAPER_ONLY) and not names <= set(PAPER_ONLY):
        raise ValueError(
            f"{sorted(names & set(PAPER_ONLY))} show data of the meta-test set and are for rules "
            f"of the paper alone; they can not be mixed with {sorted(names - set(PAPER_ONLY))}"
        )


def _plain(family: TaskFamily) -> TaskFamily:
    """Without its augmentations."""
    while isinstance(family, Augmentation):
        family = family.family
    return family


def check_trainable(family: TaskFamily) -> None:
    """Refuse a family that is, or can sample, a task of the meta-test set.

    Raises:
        ValueError: naming the family and the entry of `HELD_OUT`.
    """
    family = _plain(family)
    if family.name in PAPER_ONLY:
        return
    for held_out in HELD_OUT:
        if held_out.holds(family):
            raise ValueError(
                f"{family.name!r} can sample tasks of the meta-test set: {held_out} is held out. "
                "Use another family or another value; tasks/splits.py has the list"
            )
