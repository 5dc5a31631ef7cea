"""Regression of a random network by another, with inputs and targets on any scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from learned_optim.tasks import nets
from learned_optim.tasks.axes import AxesFamily, Floats, Ints, Strings, axis
from learned_optim.tasks.base import Batch, Params, Split, Task


@dataclass(frozen=True)
class TeacherStudentTask(Task):
    """Mean squared error of the student against `target_scale * (teacher(x / input_scale) + s)`.

    The teacher has one hidden tanh layer and outputs of about unit variance; s is its shift, N(0,
    1). Parameters `layer<i>.weight`, `layer<i>.bias`; constants `teacher0` `(teacher_width,
    inputs)`, `teacher1` `(outputs, teacher_width)`, `shift` `(outputs,)`; minibatch `z`
    `(batch_size, inputs)` N(0, 1), `noise` `(batch_size, outputs)`, N(0, noise^2).
    """

    inputs: int
    outputs: int
    teacher_width: int
    depth: int
    width: int
    activation: str
    scheme: str
    gain: float
    input_scale: float
    target_scale: float
    noise: float
    batch_size: int

    def init_params(self, generator: torch.Generator) -> Params:
        """The student's: weights by `nets.weight`, biases zero."""
        sizes = (self.inputs, *([self.width] * self.depth), self.outputs)
        return nets.mlp_params(generator, sizes, self.scheme, self.gain)

    def init(self, generator: torch.Generator) -> tuple[Params, Batch]:
        """The student, and a teacher of its own for each run."""
        params = self.init_params(generator)
        hidden = (self.teacher_width, self.inputs)
        constants = {
            "teacher0": nets.weight(generator, hidden, "lecun", 2.0),
            "teacher1": nets.weight(generator, (self.outputs, self.teacher_width), "lecun", 1.5),
            "shift": nets.normal(generator, (self.outputs,)),
        }
        return params, constants

    def batch(self, generator: torch.Generator, split: Split = "train") -> Batch:
        """Fresh inputs and label noise; the splits have the same distribution."""
        return {
            "z": nets.normal(generator, (self.batch_size, self.inputs)),
            "noise": nets.normal(generator, (self.batch_size, self.outputs), self.noise),
        }

    def loss(self, params: Params, batch: Batch) -> Tensor:
        """Mean over examples and outputs, on the targets' own scale: 1e4 and more do occur."""
        hidden = torch.tanh(batch["z"] @ batch["teacher0"].mT)
        target = hidden @ batch["teacher1"].mT + batch["shift"] + batch["noise"]
        x = (self.input_scale * batch["z"]).to(params["layer0.weight"].dtype)
        output = nets.mlp(params, x, self.depth + 1, self.activation)
        return (output - self.target_scale * target).square().mean()


@dataclass(frozen=True)
class TeacherStudent(AxesFamily):
    """Regression on generated data.

    Args (all axes, see `axes`):
        inputs: dimension of an example.
        outputs: dimension of a target.
        teacher_width: hidden units of the teacher.
        depth: hidden layers of the student.
        width: units in each.
        activation: the student's, one of `nets.ACTIVATIONS`.
        scheme: initialisation, one of `nets.SCHEMES`; biases start at zero.
        gain: factor on the student's initial weights.
        input_scale: standard deviation of the inputs.
        target_scale: of the targets; nobody rescaled them.
        noise: standard deviation of the label noise, relative to the targets.
        batch_size: examples in a minibatch.

    Raises:
        ValueError: for a value outside its range.
    """

    name: ClassVar[str] = "teacher_student"
    task = TeacherStudentTask

    inputs: Ints = axis(8, 16, 32, within=(1, 4096))
    outputs: Ints = axis(1, 4, within=(1, 4096))
    teacher_width: Ints = axis(8, 16, within=(1, 4096))
    depth: Ints = axis(1, 2, within=(0, 64))
    width: Ints = axis(16, 32, 64, within=(1, 16_384))
    activation: Strings = axis("relu", "tanh", "gelu", among=nets.ACTIVATIONS)
    scheme: Strings = axis("he", "glorot", "torch", among=nets.SCHEMES)
    gain: Floats = axis(1.0, within=(0.0, 100.0))
    input_scale: Floats = axis(0.3, 1.0, 3.0, within=(1e-6, 1e6))
    target_scale: Floats = axis(0.1, 1.0, 10.0, 100.0, within=(1e-6, 1e6))
    noise: Floats = axis(0.0, 0.1, within=(0.0, 1e3))
    batch_size: Ints = axis(32, 64, 128, within=(1, 65_536))
