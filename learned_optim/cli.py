"""The command `learned-optim`: arguments in, one call, its result printed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from learned_optim import __version__
from learned_optim.command import ending, stop

_MODEL = "a function that returns (model, loss) or (model, loss, evaluate), called for each run"

T = TypeVar("T")


def _configured(config: type[T], arguments: argparse.Namespace) -> T:
    """A config dataclass from the arguments that were given; one out of range ends the command."""
    names = [field.name for field in fields(config)]  # pyright: ignore[reportArgumentType]
    given = {name: getattr(arguments, name, None) for name in names}
    try:
        return config(**{key: value for key, value in given.items() if value is not None})
    except ValueError as error:
        stop(error)


def _demo(arguments: argparse.Namespace) -> None:
    from learned_optim.demo import DemoConfig, run_demo

    report = run_demo(_configured(DemoConfig, arguments))
    folder = Path(report.folder)
    print(f"\n{report.text}\n\nCurves: {folder / 'digits.png'}, numbers: {folder / 'digits.json'}")


def _compare(arguments: argparse.Namespace) -> None:
    from learned_optim.compare import CompareConfig, FactoryError, run_compare

    try:
        report = run_compare(_configured(CompareConfig, arguments))
    except FactoryError as error:
        stop(error)
    folder = report.folder
    print(f"{report.text}\n\nCurves: {folder / 'compare.png'}, numbers: {folder / 'compare.json'}")


def _meta_train(arguments: argparse.Namespace) -> None:
    from learned_optim.meta_training import run
    from learned_optim.meta_training.runner import REFUSALS

    with ending(*REFUSALS):
        loaded = run(
            arguments.recipe,
            output=arguments.output,
            resume=arguments.resume,
            progress=not arguments.quiet,
            device=arguments.device,
        )
    print(f"{loaded.name}: weights sha256 {loaded.sha256}")


def _list(arguments: argparse.Namespace) -> None:
    from learned_optim.optimizer import DEFAULT_RULE
    from learned_optim.weights import bundled_names, load_bundled

    for name in bundled_names():
        loaded = load_bundled(name)
        mark = " (default)" if name == DEFAULT_RULE else ""
        print(f"{name}{mark}: rule {loaded.rule.name}, weights sha256 {loaded.sha256}")


def _info(arguments: argparse.Namespace) -> None:
    from learned_optim.describe import describe

    print(describe(arguments.rule))


def _publish(arguments: argparse.Namespace) -> None:
    from learned_optim.publishing import publish

    try:
        address = publish(
            arguments.folder, arguments.repo, tag=arguments.tag, private=arguments.private
        )
    except ValueError as error:
        stop(error)
    print(f"Published. It is loaded with: rule={address!r}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="learned-optim", description="Learned optimizers.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="a learned rule beside Adam on scikit-learn's digits")
    demo.add_argument("--rule", help="bundled name, folder or user/repo@revision")
    demo.add_argument("--activations", nargs="+", metavar="NAME", help="sigmoid, tanh, relu")
    demo.add_argument("--steps", type=int, help="updates of each run")
    demo.add_argument("--seeds", type=int, help="runs of each optimizer")
    demo.add_argument("--folder", type=Path, help="where the picture and the numbers go")
    demo.add_argument("--quiet", action="store_true", help="no progress bar")
    demo.set_defaults(call=_demo)

    compare = commands.add_parser("compare", help="a learned rule and a tuned Adam on your model")
    compare.add_argument("--model", required=True, metavar="MODULE:FUNCTION", help=_MODEL)
    compare.add_argument("--steps", type=int, required=True, help="updates of each run")
    compare.add_argument("--rule", help="bundled name, folder or user/repo@revision")
    compare.add_argument("--seeds", type=int, help="runs of each optimizer (3)")
    compare.add_argument("--tuning-seeds", type=int, help="runs of each of Adam's rates (2)")
    compare.add_argument("--weight-decay", type=float, help="decoupled, of all (0)")
    compare.add_argument("--folder", type=Path, help="for the picture and the numbers (compare)")
    compare.add_argument("--quiet", action="store_true", help="no progress bar")
    compare.set_defaults(call=_compare)

    train = commands.add_parser("meta-train", help="learn a rule from a recipe")
    train.add_argument("recipe", type=Path, help="a TOML file, such as pretrained/*/recipe.toml")
    train.add_argument("--output", type=Path, help="folder of the run (default: runs/NAME)")
    train.add_argument("--resume", action="store_true", help="go on from the run's checkpoint")
    train.add_argument("--device", default="cpu", help="where to compute: cpu (default), cuda, ...")
    train.add_argument("--quiet", action="store_true", help="no progress bar")
    train.set_defaults(call=_meta_train)

    listing = commands.add_parser("list", help="the rules that come with the package")
    listing.set_defaults(call=_list)

    info = commands.add_parser("info", help="what a rule is, costs and was measured to do")
    info.add_argument("rule", help="bundled name, folder or user/repo@revision")
    info.set_defaults(call=_info)

    publish = commands.add_parser("publish", help="upload a rule to the Hub")
    publish.add_argument("folder", type=Path, help="holds the rule and its model card")
    publish.add_argument("repo", help="user/repo")
    publish.add_argument("--tag", help="for this version, such as v1")
    publish.add_argument("--private", action="store_true", help="if the repository is new")
    publish.set_defaults(call=_publish)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; `argv` is the process's by default."""
    arguments = _parser().parse_args(argv)
    with ending():
        arguments.call(arguments)
