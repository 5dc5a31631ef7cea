"""Checks on the contents of weight files: from bytes that anyone may have written to a rule.

Every check that fails raises `WeightsError` with the place, the value and what is allowed. Nothing
here opens a file, and nothing is allocated by a size that the contents ask for.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from reprlib import repr as short
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import safetensors.torch
import torch

from learned_optim.errors import WeightsError as WeightsError
from learned_optim.rules import RULES, UpdateRule, Weights

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MAX_CONFIG_BYTES = 64 * 1024
MAX_WEIGHTS_BYTES = 16 * 1024 * 1024
SHA256 = re.compile(r"[0-9a-f]{64}")

_REQUIRED_KEYS = ("format_version", "name", "rule", "config", "weights_sha256")
_LONGEST = 300  # characters of what another check has to say
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        (key, times), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {short(key)} comes {times} times")
    return result


def parse_config(data: bytes, where: str) -> dict[str, Any]:
    """The contents of `config.json`; the fields of the rule are left to `build_rule`.

    Raises:
        WeightsError: not JSON, a newer format, keys or types that are not the format's.
    """
    where = f"{where}: {CONFIG_FILE}"
    try:
        content = json.loads(
            data.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys
        )
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where} is no valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{where} must hold an object but holds {type(content).__name__}")
    _check_version(content, where)
    _check_keys(content, _REQUIRED_KEYS, (*_REQUIRED_KEYS, "extra"), where)
    for key, kind in (("rule", str), ("config", dict), ("weights_sha256", str), ("extra", dict)):
        if key in content and type(content[key]) is not kind:
            raise WeightsError(
                f"{where}: {key} must be {kind.__name__} but is {short(content[key])}"
            )
    check_name(content["name"], where)
    if not SHA256.fullmatch(content["weights_sha256"]):
        raise WeightsError(
            f"{where}: weights_sha256 must be 64 hexadecimal digits but is "
            f"{short(content['weights_sha256'])}"
        )
    return content


def _check_version(content: Mapping[str, Any], where: str) -> None:
    """Before the keys, of which a newer format may have others."""
    version = content.get("format_version")
    if type(version) is not int or version < 1:
        raise WeightsError(
            f"{where}: format_version must be an integer from 1 to {FORMAT_VERSION} but is "
            f"{short(version)}"
        )
    if version > FORMAT_VERSION:
        raise WeightsError(
            f"{where}: format_version is {short(version)} but this version reads up to "
            f"{FORMAT_VERSION}; upgrade learned_optim"
        )


def _check_keys(
    found: Iterable[str], required: Iterable[str], known: Iterable[str], where: str
) -> None:
    known = list(known)
    for key in found:
        if key not in known:
            raise WeightsError(
                f"{where}: unknown key {short(key)}; known: {nearest_first(key, known)}"
            )
    missing = sorted(set(required) - set(found))
    if missing:
        raise WeightsError(f"{where} lacks {', '.join(missing)}")


def check_name(name: object, where: str) -> None:
    """A name goes into messages, checkpoints and paths, so it has no blanks and no separators."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise WeightsError(
            f"{where}: name must be 1 to 96 letters, digits, '.', '_', '-', the first a letter or "
            f"digit, but is {short(name)}"
        )


def build_rule(name: str, config: Mapping[str, Any], where: str) -> UpdateRule:
    """The rule, its fields checked for type here and for range by its own `__post_init__`.

    Every field must be there, as a default that changes must not change what a file means; but for
    those that came later (`rules.base.later`).

    Raises:
        WeightsError: unknown rule or key, missing key, wrong type, value out of range.
    """
    where = f"{where}: {CONFIG_FILE}"
    if name not in RULES:
        raise WeightsError(
            f"{where}: unknown rule {short(name)}; known: {nearest_first(name, list(RULES))}"
        )
    rule_class = RULES[name]
    fields = {field.name: field.metadata.get("later") for field in dataclasses.fields(rule_class)}
    required = [key for key, later in fields.items() if not later]
    _check_keys(config, required, list(fields), f"{where}: config of {name}")
    hints = get_type_hints(rule_class)
    try:
        values = {key: _typed(key, value, hints[key]) for key, value in config.items()}
        return rule_class(**values)
    except ValueError as error:
        raise WeightsError(f"{where}: {_clipped(error)}") from None


def _clipped(error: Exception) -> str:
    """The beginning of a message that may repeat a value, as long as the file has it."""
    text = str(error)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _typed(key: str, value: object, hint: object) -> object:
    """The value of a config field, if it has the field's type; an int will do for a float."""
    if get_origin(hint) is Literal:
        # By type too: True == 1, and a Literal of integers must not take it.
        if any(type(value) is type(choice) and value == choice for choice in get_args(hint)):
            return value
        raise ValueError(f"{key} must be one of {list(get_args(hint))} but is {short(value)}")
    if hint is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{key} must be {getattr(hint, '__name__', hint)} but is {short(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} must be finite but is {short(value)}")
    return value


def parse_weights(data: bytes, rule: UpdateRule, where: str) -> Weights:
    """The tensors of `model.safetensors`, exactly those that the rule asks for, in its order.

    The parser's own order changes from process to process, and with it every sum over weights.

    Raises:
        WeightsError: not safetensors, or names, shapes, dtypes or numbers that the rule cannot use.
    """
    shapes = checked_shapes(rule, where)
    try:
        weights = safetensors.torch.load(data)
    # The parser has its own error for most damage, but lets KeyError, ValueError and others out.
    except Exception as error:
        raise WeightsError(
            f"{where}: {WEIGHTS_FILE} is no valid safetensors: {_clipped(error)}"
        ) from error
    check_weights(shapes, weights, where)
    return {key: weights[key] for key in shapes}


def checked_shapes(rule: UpdateRule, where: str) -> dict[str, tuple[int, ...]]:
    """The rule's shapes, refused before anything is allocated where they cannot fit the limit."""
    shapes = rule.weight_shapes()
    size = 4 * sum(math.prod(shape) for shape in shapes.values())
    if size > MAX_WEIGHTS_BYTES:
        raise WeightsError(
            f"{where}: the config asks for {size} bytes of weights, over the limit of "
            f"{MAX_WEIGHTS_BYTES}"
        )
    return shapes


def check_weights(shapes: Mapping[str, tuple[int, ...]], weights: Weights, where: str) -> None:
    """Names, shapes and dtypes exactly the rule's; every number finite."""
    _check_keys(weights, shapes, shapes, f"{where}: weights")
    for key, shape in shapes.items():
        tensor = weights[key]
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta:
            kind = (
                "on the meta device" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            )
            raise WeightsError(f"{where}: weight {key} must be a tensor of numbers but is {kind}")
        if tuple(tensor.shape) != shape:
            raise WeightsError(
                f"{where}: weight {key} must have shape {list(shape)} but has "
                f"{short(list(tensor.shape))}"
            )
        if tensor.dtype != torch.float32:
            raise WeightsError(f"{where}: weight {key} must be float32 but is {tensor.dtype}")
        finite = torch.isfinite(tensor)
        if not finite.all():
            bad = tensor[~finite]
            raise WeightsError(
                f"{where}: {bad.numel()} of {tensor.numel()} numbers of weight {key} are not "
                f"finite, the first is {bad[0].item()}"
            )


def nearest_first(word: str, known: Iterable[str]) -> str:
    """The known words, those that resemble `word` first."""

    def distance(other: str) -> float:
        return -difflib.SequenceMatcher(None, word.lower(), other.lower()).ratio()

    return ", ".join(sorted(known, key=lambda other: (distance(other), other))) or "none"
