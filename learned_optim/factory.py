"""One function of the user's that makes a model and its loss: for `compare`, and to learn on.

    def build():
        model = torch.nn.Linear(8, 1)
        def loss():
            x = torch.randn(32, 8)
            return (model(x) - x.sum(-1, keepdim=True)).square().mean()
        return model, loss

It is called anew for each run, after the random generators of Python, NumPy and torch were seeded
with the run's seed; `loss` is called once a step and draws its own minibatch. A third value,
`evaluate`, may be returned: it gives what a comparison is about (a validation loss, say; less is
better) in place of the training loss.
"""

from __future__ import annotations

import importlib
import inspect
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from learned_optim.errors import WeightsError

Factory = Callable[[], Any]

_RETURNS = "(model, loss) or (model, loss, evaluate)"


class FactoryError(ValueError):
    """The function that should make the model is not there or returns something else."""


class FunctionFailed(RuntimeError):
    """The user's code failed as a command's own arguments do, which would hide where."""


@contextmanager
def users(function: str) -> Iterator[None]:
    """Around a call of the user's: errors that commands print without a traceback get one.

    Raises:
        FunctionFailed: from the error.
    """
    try:
        yield
    except (OSError, ImportError, WeightsError) as error:
        raise FunctionFailed(f"{function} raised {type(error).__name__}: {error}") from error


class Problem(NamedTuple):
    """What a factory returned, checked.

    Attributes:
        model: whose parameters are trained.
        loss: the loss of a fresh minibatch, a tensor of one element.
        evaluate: what the comparison is about instead, a number.
    """

    model: nn.Module
    loss: Callable[[], Tensor]
    evaluate: Callable[[], float | Tensor] | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [param for param in self.model.parameters() if param.requires_grad]


def load_factory(name: str) -> Factory:
    """The function that `package.module:function` names; the current folder is searched first.

    Raises:
        FactoryError: no such module or function, or the module needs one that is not installed.
        FunctionFailed: the module reads what is not there.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise FactoryError(f"model must be 'module:function' but is {name!r}")
    if module_name.endswith(".py") or "/" in module_name:
        raise FactoryError(
            f"model {name!r}: give the module's name, not its file: "
            f"'{module_name.removesuffix('.py').replace('/', '.').lstrip('.')}:{attribute}'"
        )
    # A console script, unlike `python -m`, does not look where it was called.
    here = os.getcwd()  # noqa: PTH109
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except OSError as error:
        raise FunctionFailed(f"{module_name} raised {type(error).__name__}: {error}") from error
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{module_name}.".startswith(f"{missing}."):
            raise FactoryError(
                f"there is no module {missing!r} in {here} or where Python looks"
            ) from None
        raise FactoryError(f"{module_name} needs {missing!r}, which is not installed") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise FactoryError(
            f"{module_name} has no function {attribute!r}; it has: {', '.join(known) or 'none'}"
        )
    return factory


def build(factory: Factory, seed: int) -> Problem:
    """Seed everything, call the factory and check what it returns.

    Raises:
        FactoryError: it wants arguments, or returns something else or a model without parameters
            to train.
        FunctionFailed: see `users`.
    """
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise FactoryError(f"the factory is called without arguments, but: {error}") from None
    seed_all(seed)
    with users("the factory"):
        made = factory()
    if not (isinstance(made, tuple) and len(made) in (2, 3)):
        raise FactoryError(f"the factory must return {_RETURNS} but returned {made!r:.200}")
    problem = Problem(*made)
    if not isinstance(problem.model, nn.Module):
        raise FactoryError(f"the factory must return {_RETURNS} but model is {type(made[0])}")
    for key in ("loss", "evaluate"):
        value = getattr(problem, key)
        if not callable(value) and not (key == "evaluate" and value is None):
            raise FactoryError(f"the factory must return {_RETURNS} but {key} is {value!r:.200}")
    if not problem.parameters:
        raise FactoryError("the model has no parameter with requires_grad, so nothing to train")
    return problem


def build_anew(factory: Factory) -> Problem:
    """Build twice, and find out whether training of the first model would be seen in the second.

    Returns:
        The second, under seed 0.

    Raises:
        FactoryError: it starts elsewhere than the first; and see `build`.
        FunctionFailed: see `users`.
    """
    params = _made(build(factory, 0))
    starts = [param.detach().clone() for param in params]
    with torch.no_grad():
        for param in params:
            param.add_(1)
    problem = build(factory, 0)
    if not all(map(torch.equal, starts, _made(problem))):
        raise FactoryError(
            "the factory, called twice under one seed, gives parameters that start elsewhere the "
            "second time: make the model inside the function, and draw its start from the random "
            "generators of Python, NumPy or torch"
        )
    return problem


def _made(problem: Problem) -> list[nn.Parameter]:
    """Without those of lazy layers, which have no values before the first loss."""
    return [param for param in problem.parameters if not is_lazy(param)]


def take_loss(problem: Problem) -> Tensor:
    """The loss of a fresh minibatch.

    Raises:
        FactoryError: it is nothing that can be trained.
        FunctionFailed: see `users`.
    """
    with users("loss()"):
        loss = problem.loss()
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        raise FactoryError(
            "loss() must return a tensor of one element that depends on the parameters but "
            f"returned {loss!r:.200}"
        )
    return loss


def seed_all(seed: int) -> None:
    """Seed the random generators of Python, torch and, where it is loaded, NumPy."""
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
