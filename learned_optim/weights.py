"""Weight files: a rule, its config and its weights, checked before anything uses them.

A rule is a folder of two files (a model card and a recipe may lie beside them):

- `config.json`: `{"format_version": 1, "name": ..., "rule": ..., "config": {...},
  "weights_sha256": ..., "extra": {...}}`, where `config` holds every field of the rule's
  dataclass (but for a `later` one at its default), `weights_sha256` says which weights it belongs
  to, and `extra` (optional) is free;
- `model.safetensors`: the float32 meta-parameters, exactly `rule.weight_shapes()`.

Pickle files are never opened. Loading executes nothing from the files, reads at most 64 KiB and
16 MiB, and ends in a `LoadedRule` or in one of two errors: `WeightsUnavailable` when the files
cannot be had, `WeightsError` when they are there but must not be used.

The bundled rules lie in `pretrained/`, packaged as `learned_optim/pretrained`. Its `SHA256SUMS`
is their registry: a name is bundled when its two files are listed there, and is used only when
both hashes agree. After changing a bundled rule:

    cd pretrained && sha256sum */config.json */model.safetensors > SHA256SUMS

What is where, under three headings: a rule is had from its folder (`load_folder`) or from memory
(`in_memory`), or saved (`save_folder`); the rules that come with the package are found in their
registry (`load_bundled`); and what all of them rest on, the bytes of the two files, are read,
checked and replaced (`read_files` and `decode`, which `hub` uses too). What a check is, is in
`weight_checks`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from learned_optim import files
from learned_optim.rules import UpdateRule, Weights
from learned_optim.weight_checks import (
    CONFIG_FILE,
    FORMAT_VERSION,
    MAX_CONFIG_BYTES,
    MAX_WEIGHTS_BYTES,
    SHA256,
    WEIGHTS_FILE,
    build_rule,
    check_name,
    check_weights,
    checked_shapes,
    nearest_first,
    parse_config,
    parse_weights,
)
from learned_optim.weight_checks import WeightsError as WeightsError

REGISTRY_FILE = "SHA256SUMS"


class WeightsUnavailable(OSError):
    """The files of a rule cannot be had: no such name or folder, no permission, no network."""


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedRule:
    """A rule that passed all checks.

    Attributes:
        rule: the config and the functions.
        weights: its meta-parameters by name, of the shapes of `rule.weight_shapes()`, float32 on
            the CPU.
        name: how messages and checkpoints call it.
        sha256: of the bytes of its `model.safetensors`, in hexadecimal.
    """

    rule: UpdateRule
    weights: Weights
    name: str
    sha256: str

    def lean(self) -> LoadedRule:
        """What steps need of it, see `UpdateRule.lean`; name and sha256 are those of the file."""
        rule, weights = self.rule.lean(self.weights)
        return dataclasses.replace(self, rule=rule, weights=weights)


# -- a rule and its folder -------------------------------------------------------------------------


def load_folder(folder: str | os.PathLike[str]) -> LoadedRule:
    """Load a rule from a folder that holds `config.json` and `model.safetensors`.

    Raises:
        WeightsUnavailable: the folder or one of the files is missing or cannot be read.
        WeightsError: a file fails a check.
    """
    path = Path(folder)
    if not os.path.isdir(path):  # noqa: PTH112, as Path.is_dir raises for some names
        kind = "is not a folder" if os.path.lexists(path) else "does not exist"
        raise WeightsUnavailable(
            f"{path} {kind} (looked at {path.absolute()}); give a folder that holds "
            f"{CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    return decode(*read_files(path), str(path))


def save_folder(
    folder: str | os.PathLike[str],
    rule: UpdateRule,
    weights: Weights,
    *,
    name: str,
    extra: Mapping[str, object] | None = None,
) -> LoadedRule:
    """Write `config.json` and `model.safetensors` and return what loading them gives.

    The same arguments always give the same bytes. Each file is replaced in one piece, the config
    last: a crash in between leaves a config that names other weights, which loading refuses.

    Args:
        folder: made if needed; other files in it stay.
        rule: a rule of the registry `RULES`.
        weights: its float32 meta-parameters, on any device.
        name: letters, digits, `.`, `_`, `-`; at most 96.
        extra: further plain values for `config.json`.

    Raises:
        WeightsError: what would be written could not be loaded; nothing is written.
        OSError: the folder cannot be written.
    """
    blob = _encode_weights(rule, weights, name)
    content: dict[str, object] = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "rule": rule.name,
        "config": rule.config(),
        "weights_sha256": hashlib.sha256(blob).hexdigest(),
    }
    if extra is not None:
        content["extra"] = dict(extra)
    try:
        config = (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{name}: extra and config must be plain JSON values: {error}") from None
    if len(config) > MAX_CONFIG_BYTES:
        raise WeightsError(
            f"{name}: {CONFIG_FILE} would be {len(config)} bytes, larger than the limit of "
            f"{MAX_CONFIG_BYTES}; put less into extra"
        )
    loaded = decode(config, blob, f"rule {name!r}, not saved,")
    if loaded.rule != rule:
        raise WeightsError(f"{name}: RULES[{rule.name!r}] is another class than {type(rule)}")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    files.write(path / WEIGHTS_FILE, blob)
    files.write(path / CONFIG_FILE, config)
    return loaded


def digest(weights: Weights) -> str:
    """The sha256 of the `model.safetensors` that holds these weights, whatever rule they are of."""
    return hashlib.sha256(_blob(weights)).hexdigest()


def in_memory(rule: UpdateRule, weights: Weights, *, name: str) -> LoadedRule:
    """Make a `LoadedRule` of weights that are not in files; the rule need not be in `RULES`.

    The weights are copied, so training may go on with the originals. The sha256 is that of the
    file which `save_folder` would write.

    Raises:
        WeightsError: names, shapes or dtypes are not the rule's, a number is not finite, or the
            name is not one that `save_folder` takes.
    """
    check_name(name, "in_memory")
    blob = _encode_weights(rule, weights, name)
    copies = parse_weights(blob, rule, name)
    return LoadedRule(rule, copies, name, hashlib.sha256(blob).hexdigest())


# -- the rules that come with the package, and their registry --------------------------------------


def bundled_names() -> list[str]:
    """Names of the rules that come with the package, sorted."""
    return sorted({path.partition("/")[0] for path in _registry()})


def bundled_folder(name: str) -> Path:
    """Where a bundled rule lies, with its recipe, metrics and model card.

    Raises:
        WeightsUnavailable: no bundled rule has this name.
    """
    names = bundled_names()
    if name not in names:
        raise WeightsUnavailable(
            f"no bundled rule is called {name!r}; bundled: {nearest_first(name, names)}. "
            f"A folder is given with its path ('./{name}'), a rule on the Hub as "
            "'user/repo@revision'"
        )
    return _pretrained() / name


def load_bundled(name: str) -> LoadedRule:
    """Load a rule that comes with the package; never touches the network.

    Raises:
        WeightsUnavailable: no bundled rule has this name, or its files are missing.
        WeightsError: the files are not the ones that were released, or fail another check.
    """
    registry, folder = _registry(), bundled_folder(name)
    config, blob = read_files(folder)
    for file, data in ((CONFIG_FILE, config), (WEIGHTS_FILE, blob)):
        found, expected = hashlib.sha256(data).hexdigest(), registry.get(f"{name}/{file}")
        if found != expected:
            raise WeightsError(
                f"{folder / file} is not the released file: its sha256 is {found} but "
                f"{REGISTRY_FILE} has {expected}; reinstall learned_optim"
            )
    return decode(config, blob, str(folder))


def _pretrained() -> Path:
    """`pretrained/` inside the installed package, else (editable, checkout) beside it."""
    package = Path(__file__).resolve().parent
    packaged = package / "pretrained"
    return packaged if (packaged / REGISTRY_FILE).is_file() else package.parent / "pretrained"


def _registry() -> dict[str, str]:
    """`<name>/<file>` -> sha256, of the bundled rules; empty where none are."""
    path = _pretrained() / REGISTRY_FILE
    if not path.is_file():
        return {}
    registry = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        sha256, _, file = line.partition("  ")
        if not SHA256.fullmatch(sha256) or file.count("/") != 1:
            raise WeightsError(f"{path}: {line!r} is not '<sha256>  <name>/<file>'")
        registry[file] = sha256
    return registry


# -- the bytes of the two files --------------------------------------------------------------------


def read_files(folder: Path) -> tuple[bytes, bytes]:
    """The bytes of `config.json` and of `model.safetensors`, each once and within its limit.

    Raises:
        WeightsUnavailable: a file is missing or cannot be read.
        WeightsError: a file is over its limit.
    """
    return (
        _read(folder, CONFIG_FILE, MAX_CONFIG_BYTES),
        _read(folder, WEIGHTS_FILE, MAX_WEIGHTS_BYTES),
    )


def decode(config: bytes, blob: bytes, where: str) -> LoadedRule:
    """All checks on the contents of the two files; `where` begins the messages.

    Raises:
        WeightsError: a check failed.
    """
    content = parse_config(config, where)
    rule = build_rule(content["rule"], content["config"], where)
    sha256 = hashlib.sha256(blob).hexdigest()
    if sha256 != content["weights_sha256"]:
        raise WeightsError(
            f"{where}: the sha256 of {WEIGHTS_FILE} is {sha256} but {CONFIG_FILE} was written "
            f"for {content['weights_sha256']}: one of the two was damaged or replaced"
        )
    weights = parse_weights(blob, rule, where)
    return LoadedRule(rule, weights, content["name"], sha256)


def _read(folder: Path, file: str, limit: int) -> bytes:
    try:
        return files.read_whole(folder / file, limit)
    except FileNotFoundError:
        raise WeightsUnavailable(
            f"{folder} has no {file}; a rule needs {CONFIG_FILE} and {WEIGHTS_FILE} "
            "(pickle files are never read; `learned_optim.weights.save_folder` writes both)"
        ) from None
    except OSError as error:
        raise WeightsUnavailable(f"{folder / file} cannot be read: {error}") from error


def _encode_weights(rule: UpdateRule, weights: Weights, name: str) -> bytes:
    """The bytes of `model.safetensors`: one metadata key, as several would come in any order."""
    check_weights(checked_shapes(rule, name), weights, name)
    return _blob(weights)


def _blob(weights: Weights) -> bytes:
    tensors = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in weights.items()
    }
    return safetensors.torch.save(tensors, metadata={"format": "pt"})
