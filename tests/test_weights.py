"""Weight files: what is written comes back, and bad input ends in one of the two errors."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
import random
import sys
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import safetensors.torch
import torch

from learned_optim import weight_checks, weights
from learned_optim.rules import L2L, RULES, Adam, UpdateRule, Weights
from learned_optim.weights import (
    LoadedRule,
    WeightsError,
    WeightsUnavailable,
    in_memory,
    load_bundled,
    load_folder,
    save_folder,
)

SMALL = L2L(layers=1, hidden=2)


def drawn(rule: UpdateRule) -> Weights:
    return rule.init_weights(torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_folder(tmp_path / "rule", SMALL, drawn(SMALL), name="small")
    return tmp_path / "rule"


def edit(folder: Path, **changes: object) -> None:
    """Change keys of config.json; those of the rule's config as `config__hidden=...`."""
    path = folder / "config.json"
    content = json.loads(path.read_bytes())
    for key, value in changes.items():
        place, _, field = key.partition("__")
        target, field = (content[place], field) if field else (content, place)
        target[field] = value
    path.write_text(json.dumps(content))


def put_weights(folder: Path, blob: bytes) -> None:
    """Replace the weights by others that config.json agrees to."""
    (folder / "model.safetensors").write_bytes(blob)
    edit(folder, weights_sha256=hashlib.sha256(blob).hexdigest())


def put_tensors(folder: Path, tensors: Weights) -> None:
    put_weights(folder, safetensors.torch.save(tensors))


def assert_equal(loaded: LoadedRule, expected: LoadedRule) -> None:
    assert loaded.rule == expected.rule
    assert (loaded.name, loaded.sha256) == (expected.name, expected.sha256)
    assert loaded.weights.keys() == expected.weights.keys()
    for key, value in expected.weights.items():
        assert torch.equal(loaded.weights[key], value)


# -- what is written comes back --------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_every_rule_of_the_registry_comes_back_as_saved(name: str, tmp_path: Path):
    rule = RULES[name]()
    saved = save_folder(tmp_path, rule, drawn(rule), name="a.b_c-1", extra={"meta_seed": 3})
    assert_equal(load_folder(tmp_path), saved)
    assert_equal(in_memory(rule, drawn(rule), name="a.b_c-1"), saved)
    assert saved.sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads((tmp_path / "config.json").read_text())["extra"] == {"meta_seed": 3}


def test_the_same_rule_gives_the_same_bytes_in_any_order_of_its_weights(tmp_path: Path):
    original = drawn(SMALL)
    backwards = dict(reversed(original.items()))
    # A transposed view holds the same numbers, other strides.
    backwards["cell.0.w_ih"] = original["cell.0.w_ih"].t().contiguous().t()
    assert not backwards["cell.0.w_ih"].is_contiguous()
    save_folder(tmp_path / "a", SMALL, original, name="x")
    save_folder(tmp_path / "b", SMALL, backwards, name="x")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    header = (tmp_path / "a" / "model.safetensors").read_bytes()[8:].split(b"}")[0]
    assert header.startswith(b'{"__metadata__":{"format":"pt"')
    for loaded in (load_folder(tmp_path / "b"), in_memory(SMALL, backwards, name="x")):
        assert list(loaded.weights) == list(SMALL.weight_shapes())


def test_an_integer_will_do_for_a_float(tmp_path: Path):
    rule = L2L(layers=1, hidden=2, p=7)
    save_folder(tmp_path, rule, drawn(rule), name="x")
    p = load_folder(tmp_path).rule.config()["p"]
    assert p == 7.0
    assert type(p) is float


def test_in_memory_copies_so_that_training_may_go_on():
    original = drawn(SMALL)
    loaded = in_memory(SMALL, original, name="x")
    before = loaded.weights["head.w"].clone()
    original["head.w"].add_(1)
    assert torch.equal(loaded.weights["head.w"], before)
    trained = {key: value.requires_grad_() for key, value in original.items()}
    assert not in_memory(SMALL, trained, name="x").weights["head.w"].requires_grad


def test_a_loaded_rule_survives_pickling(folder: Path):
    loaded = load_folder(folder)
    assert_equal(pickle.loads(pickle.dumps(loaded)), loaded)


def test_other_files_of_the_folder_stay_and_no_temporary_one_is_left(folder: Path):
    (folder / "README.md").write_text("card")
    save_folder(folder, SMALL, drawn(SMALL), name="again")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    if os.name == "posix":
        assert (folder / "config.json").stat().st_mode & 0o777 == 0o644


def test_a_save_that_fails_leaves_the_old_file_and_no_litter(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    other = {key: value + 1 for key, value in drawn(SMALL).items()}
    with pytest.raises(OSError, match="No space left"):
        save_folder(folder, SMALL, other, name="other")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_save_that_dies_between_the_two_files_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    replace = Path.replace

    def dies_at_the_config(self: Path, target: Path) -> Path:
        if target.name == "config.json":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dies_at_the_config)
    other = {key: value + 1 for key, value in drawn(SMALL).items()}
    with pytest.raises(KeyboardInterrupt):
        save_folder(folder, SMALL, other, name="small")
    with pytest.raises(WeightsError, match=r"damaged or replaced"):
        load_folder(folder)


# -- what must not be written ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "../up", "a/b", "a b", "x" * 97, "é", "a\n", 3, None])
def test_a_name_that_is_no_file_name_is_refused(name: str, tmp_path: Path):
    for make in (in_memory, lambda *args, name: save_folder(tmp_path / "x", *args, name=name)):
        with pytest.raises(WeightsError, match="name must be"):
            make(SMALL, drawn(SMALL), name=name)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("extra", [{"x": float("nan")}, {"x": torch.zeros(1)}, {"x": "y" * 70_000}])
def test_extra_that_could_not_be_read_back_is_refused(extra: dict[str, object], tmp_path: Path):
    with pytest.raises(WeightsError, match=r"plain JSON values|larger than"):
        save_folder(tmp_path / "x", SMALL, drawn(SMALL), name="x", extra=extra)
    assert not (tmp_path / "x").exists()


@dataclasses.dataclass(frozen=True)
class Impostor(L2L):
    """Has the name of a rule in the registry, and is another."""


def test_a_rule_that_is_not_in_the_registry_works_in_memory_but_is_not_saved(tmp_path: Path):
    rule = Impostor(layers=1, hidden=2)
    assert in_memory(rule, drawn(rule), name="x").rule is rule
    with pytest.raises(WeightsError, match="another class"):
        save_folder(tmp_path / "x", rule, drawn(rule), name="x")
    assert not (tmp_path / "x").exists()


# -- weights that do not fit -----------------------------------------------------------------------


def without(tensors: Weights, key: str) -> Weights:
    return {name: value for name, value in tensors.items() if name != key}


BAD_WEIGHTS = {
    "missing": (lambda w: without(w, "head.w"), r"lacks head\.w"),
    "extra": (
        lambda w: w | {"haed.w": torch.zeros(1)},
        r"unknown key 'haed\.w'; known: head\.w",
    ),
    "shape": (lambda w: w | {"head.b": torch.zeros(2)}, r"head\.b must have shape \[1\].*\[2\]"),
    "scalar": (lambda w: w | {"head.b": torch.zeros(())}, r"head\.b must have shape \[1\].*\[\]"),
    "empty": (lambda w: w | {"head.b": torch.zeros(0)}, r"head\.b must have shape \[1\].*\[0\]"),
    "float64": (lambda w: w | {"head.b": w["head.b"].double()}, "must be float32.*float64"),
    "half": (lambda w: w | {"head.b": w["head.b"].half()}, "must be float32.*float16"),
    "int": (lambda w: w | {"head.b": w["head.b"].int()}, "must be float32.*int32"),
    "complex": (lambda w: w | {"head.b": w["head.b"].cfloat()}, "must be float32.*complex64"),
    "nan": (lambda w: w | {"head.b": w["head.b"] * torch.nan}, "1 of 1 numbers.*finite.*nan"),
    "inf": (lambda w: w | {"head.w": w["head.w"] / 0.0}, r"2 of 2 numbers.*finite.*inf"),
    "none": (lambda w: {}, "lacks"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_weights_that_do_not_fit_are_refused_in_files_in_memory_and_on_saving(
    case: str, folder: Path
):
    change, message = BAD_WEIGHTS[case]
    bad = change(drawn(SMALL))
    put_tensors(folder, bad)
    with pytest.raises(WeightsError, match=message):
        load_folder(folder)
    with pytest.raises(WeightsError, match=message):
        in_memory(SMALL, bad, name="x")
    with pytest.raises(WeightsError, match=message):
        save_folder(folder / "new", SMALL, bad, name="x")
    assert not (folder / "new").exists()


def test_weights_of_another_save_are_refused(folder: Path):
    other = safetensors.torch.save({key: value + 1 for key, value in drawn(SMALL).items()})
    (folder / "model.safetensors").write_bytes(other)
    with pytest.raises(WeightsError, match=hashlib.sha256(other).hexdigest()):
        load_folder(folder)


def foreign_header(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\x80\x02}q\x00.",
        b"PK\x03\x04" + bytes(100),
        b"\xff" * 64,
        (2**63).to_bytes(8, "little") + b"{}",
        foreign_header([]),
        foreign_header({"head.b": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"0"),
        foreign_header({"head.b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12"),
        foreign_header({"x": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 4]}}, b"1234"),
        foreign_header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
    ],
)
def test_files_of_another_kind_are_refused(blob: bytes, folder: Path):
    put_weights(folder, blob)
    with pytest.raises(WeightsError, match=r"no valid safetensors"):
        load_folder(folder)


def test_pickle_files_are_never_opened(folder: Path):
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (sys.exit, ("a pickle file was opened",))

    for file in ("pytorch_model.bin", "model.pt", "model.safetensors"):
        (folder / file).write_bytes(pickle.dumps(Trap()))
    edit(folder, weights_sha256=hashlib.sha256(pickle.dumps(Trap())).hexdigest())
    with pytest.raises(WeightsError, match="no valid safetensors"):
        load_folder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsUnavailable, match=r"no model\.safetensors.*never read"):
        load_folder(folder)


# -- configs that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version is 2.*reads up to 1; upgrade learned_optim"),
        ({"format_version": 10**30, "future": {}}, "upgrade learned_optim"),
        ({"format_version": 0}, "format_version must be an integer from 1"),
        ({"format_version": 1.0}, r"format_version must be an integer.*1\.0"),
        ({"format_version": True}, "format_version must be an integer.*True"),
        ({"format_version": "1"}, "format_version must be an integer.*'1'"),
        ({"format_version": None}, "format_version must be an integer.*None"),
        ({"nmae": "x"}, "unknown key 'nmae'; known: name"),
        ({"rule": "l21"}, "unknown rule 'l21'; known: l2l"),
        ({"rule": ["l2l"]}, "rule must be str"),
        ({"rule": "adam"}, "config of adam: unknown key 'cell'"),
        ({"config": None}, "config must be dict but is None"),
        ({"extra": [1]}, r"extra must be dict but is \[1\]"),
        ({"name": "../x"}, "name must be"),
        ({"weights_sha256": "abc"}, "weights_sha256 must be 64 hexadecimal digits but is 'abc'"),
        ({"config__hiden": 2}, "unknown key 'hiden'; known: hidden"),
        ({"config__hidden": 20_000}, r"hidden must be in \[1, 256\] but is 20000"),
        ({"config__hidden": 10**400}, r"hidden must be in \[1, 256\]"),
        ({"config__hidden": 10**4000}, r"hidden must be in \[1, 256\]"),
        ({"config__hidden": 2.0}, r"hidden must be int but is 2\.0"),
        ({"config__hidden": True}, "hidden must be int but is True"),
        ({"config__hidden": "2"}, "hidden must be int but is '2'"),
        ({"config__hidden": 3}, r"must have shape"),
        ({"config__layers": 0}, r"layers must be in \[1, 8\] but is 0"),
        ({"config__scale": -1}, r"scale must be in .* but is -1"),
        ({"config__scale": True}, "scale must be float but is True"),
        ({"config__scale": 10**400}, "scale must be float but is 1000"),
        ({"config__scale": None}, "scale must be float but is None"),
        ({"config__cell": "ltsm"}, "cell must be one of .* but is 'ltsm'"),
        ({"config__cell": "x" * 60_000}, "cell must be one of .* but is 'xxx"),
        ({"config__cell": ["lstm"]}, "cell must be str"),
        ({"config__preprocess": "log"}, "preprocess must be one of .* but is 'log'"),
        ({"config__preprocess": 1}, "preprocess must be one of .* but is 1"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    changes: dict[str, object], message: str, folder: Path
):
    edit(folder, **changes)
    with pytest.raises(WeightsError, match=message) as error:
        load_folder(folder)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("key", ["format_version", "name", "rule", "config", "weights_sha256"])
def test_every_key_but_extra_must_be_there(key: str, folder: Path):
    content = json.loads((folder / "config.json").read_bytes())
    del content[key]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=key):
        load_folder(folder)


@pytest.mark.parametrize(
    "key", [field.name for field in dataclasses.fields(L2L) if "later" not in field.metadata]
)
def test_every_field_of_the_rule_must_be_there(key: str, folder: Path):
    content = json.loads((folder / "config.json").read_bytes())
    del content["config"][key]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=f"config of l2l lacks {key}"):
        load_folder(folder)


def test_a_field_that_came_later_may_be_missing_and_means_what_was_before_it(folder: Path):
    content = json.loads((folder / "config.json").read_bytes())
    assert "state" not in content["config"]
    rule = load_folder(folder).rule
    assert isinstance(rule, L2L)
    assert rule.state == "float32"
    for state in ("float16", "float32"):
        content["config"]["state"] = state
        (folder / "config.json").write_text(json.dumps(content))
        assert load_folder(folder).rule == dataclasses.replace(rule, state=state)
    content["config"]["state"] = "float8"
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"state must be one of .* but is 'float8'"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no valid JSON"),
        ("{", "no valid JSON"),
        ("[]", "must hold an object but holds list"),
        ("\ud800", "no valid JSON"),
        ("[" * 50_000, "no valid JSON"),
        ('{"a": ' * 10_000, "no valid JSON"),
        ("9" * 60_000, "no valid JSON|must hold an object"),
        ('{"format_version": NaN}', "NaN is not a JSON number"),
        ('{"format_version": -Infinity}', "-Infinity is not a JSON number"),
        ('{"format_version": 1, "format_version": 1}', "'format_version' comes 2 times"),
        (json.dumps({"format_version": 1, "k" * 60_000: 1}), "unknown key 'kkk"),
    ],
)
def test_a_config_that_is_not_plain_json_is_refused(text: str, message: str, folder: Path):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(WeightsError, match=message) as error:
        load_folder(folder)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("number", ["1e999", "NaN", "Infinity"])
def test_a_number_that_is_not_finite_is_refused(number: str, folder: Path):
    edit(folder, config__scale="here")
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"here"', number))
    with pytest.raises(WeightsError, match=r"scale must be finite|not a JSON number"):
        load_folder(folder)


def test_an_integer_choice_does_not_take_a_boolean():
    choice = Literal[1, "x"]
    assert weight_checks._typed("key", 1, choice) == 1
    with pytest.raises(ValueError, match="key must be one of"):
        weight_checks._typed("key", True, choice)


# -- sizes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "limit"), [("config.json", 64 * 1024), ("model.safetensors", 16 * 1024 * 1024)]
)
def test_a_file_over_its_limit_is_refused_without_being_read_to_the_end(
    file: str, limit: int, folder: Path
):
    path = folder / file
    with path.open("r+b") as stream:
        stream.truncate(limit + 1)
    with pytest.raises(WeightsError, match=f"larger than the limit of {limit} bytes"):
        load_folder(folder)
    with path.open("r+b") as stream:
        stream.truncate(limit)
    with pytest.raises(WeightsError, match=r"no valid JSON|damaged or replaced"):
        load_folder(folder)


def test_no_more_than_the_limit_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    class Endless(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(size)
            return bytes(size or 0)

    monkeypatch.setattr(Path, "open", lambda *args: Endless())
    with pytest.raises(WeightsError, match="larger than"):
        load_folder(folder)
    assert asked == [64 * 1024 + 1]


def test_a_huge_config_is_refused_before_anything_is_allocated(folder: Path):
    @dataclasses.dataclass(frozen=True)
    class Unbounded(Adam):
        """A rule that forgot the range of its size."""

        name: ClassVar[str] = "unbounded"
        size: int = 1

        def weight_shapes(self) -> dict[str, tuple[int, ...]]:
            return {"w": (self.size, self.size)}

    with pytest.raises(WeightsError, match="asks for 4000000000000000000 bytes"):
        weight_checks.parse_weights(b"", Unbounded(size=10**9), "here")
    # 16 MiB are within the limit, and what is just over it is refused too.
    assert weight_checks.checked_shapes(Unbounded(size=2048), "here") == {"w": (2048, 2048)}
    with pytest.raises(WeightsError, match=f"asks for {4 * 2049**2} bytes"):
        weight_checks.checked_shapes(Unbounded(size=2049), "here")


# -- what cannot be had ----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["nowhere", "a\0b", "x" * 5000])
def test_a_folder_that_is_not_there_is_unavailable(bad: str, tmp_path: Path):
    with pytest.raises(WeightsUnavailable, match=r"does not exist \(looked at /"):
        load_folder(tmp_path / bad)


def test_a_file_in_the_place_of_the_folder_is_unavailable(folder: Path):
    with pytest.raises(WeightsUnavailable, match="is not a folder"):
        load_folder(folder / "config.json")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_or_a_folder_in_its_place_is_unavailable(file: str, folder: Path):
    (folder / file).unlink()
    with pytest.raises(WeightsUnavailable, match=f"has no {file}"):
        load_folder(folder)
    (folder / file).mkdir()
    with pytest.raises(WeightsUnavailable, match=f"has no {file}"):
        load_folder(folder)


def test_a_file_that_cannot_be_read_is_unavailable(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(self: Path, *args: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(WeightsUnavailable, match=r"cannot be read.*Permission denied"):
        load_folder(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_the_place_of_a_file_does_not_hang(folder: Path):
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(WeightsUnavailable, match=r"has no config\.json"):
        load_folder(folder)


# -- bundled rules ---------------------------------------------------------------------------------


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `pretrained/` of two rules, and a third that is not in the registry."""
    root = tmp_path / "pretrained"
    lines = []
    for name in ("l2l-quadratic", "l2l-mnist", "unfinished"):
        save_folder(root / name, SMALL, drawn(SMALL), name=name)
        for file in ("config.json", "model.safetensors"):
            sha256 = hashlib.sha256((root / name / file).read_bytes()).hexdigest()
            lines.append(f"{sha256}  {name}/{file}")
    (root / "SHA256SUMS").write_text("\n".join(lines[:4]) + "\n")
    monkeypatch.setattr(weights, "_pretrained", lambda: root)
    return root


def test_the_registry_says_what_is_bundled(pretrained: Path):
    assert weights.bundled_names() == ["l2l-mnist", "l2l-quadratic"]
    assert load_bundled("l2l-mnist").name == "l2l-mnist"


def test_an_unknown_name_lists_the_bundled_ones_nearest_first(pretrained: Path):
    for wrong, first in (("l2l-mnsit", "l2l-mnist"), ("L2L-Quad", "l2l-quadratic")):
        with pytest.raises(WeightsUnavailable, match=f"'{wrong}'; bundled: {first}, "):
            load_bundled(wrong)
    with pytest.raises(WeightsUnavailable, match="'unfinished'"):
        load_bundled("unfinished")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_bundled_file_that_is_not_the_released_one_is_refused(file: str, pretrained: Path):
    path = pretrained / "l2l-mnist" / file
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(WeightsError, match=rf"{file} is not the released file.*reinstall"):
        load_bundled("l2l-mnist")
    load_bundled("l2l-quadratic")


def test_a_bundled_rule_without_its_files_is_unavailable(pretrained: Path):
    (pretrained / "l2l-mnist" / "config.json").unlink()
    with pytest.raises(WeightsUnavailable, match=r"no config\.json"):
        load_bundled("l2l-mnist")


@pytest.mark.parametrize("line", ["l2l-mnist/config.json", "12  a/b", "0" * 64 + "  file", "é"])
def test_a_broken_registry_is_refused(line: str, pretrained: Path):
    (pretrained / "SHA256SUMS").write_text(line, encoding="utf-8")
    with pytest.raises(WeightsError, match="SHA256SUMS"):
        weights.bundled_names()


def test_without_a_registry_nothing_is_bundled(pretrained: Path):
    (pretrained / "SHA256SUMS").unlink()
    assert weights.bundled_names() == []


@pytest.mark.parametrize("name", weights.bundled_names())
def test_every_bundled_rule_loads_under_its_name(name: str):
    assert load_bundled(name).name == name


def test_every_finished_folder_of_pretrained_is_in_the_registry():
    folders = {path.parent.name for path in weights._pretrained().glob("*/model.safetensors")}
    assert folders == set(weights.bundled_names())


# -- damage ----------------------------------------------------------------------------------------


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Flip some bytes, cut the end off, drop, repeat or zero a piece."""
    out = bytearray(data)
    start = draw.randrange(len(out))
    end = min(len(out), start + draw.choice((1, 2, 8, 64)))
    kind = draw.choice(("flip", "flip", "cut", "drop", "repeat", "zero", "splice"))
    if kind == "flip":
        for _ in range(draw.choice((1, 1, 2, 5))):
            out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del out[start:]
    elif kind == "drop":
        del out[start:end]
    elif kind == "repeat":
        out[start:start] = out[start:end]
    elif kind == "zero":
        out[start:end] = bytes(end - start)
    else:
        out[start:start] = draw.choice((b"NaN", b"1e999", b"true", b"null", b"[", b'"', b"-", b"9"))
    return bytes(out)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "both"])
def test_damaged_files_load_rightly_or_end_in_a_weights_error(file: str, folder: Path):
    draw = random.Random(0)
    config = (folder / "config.json").read_bytes()
    blob = (folder / "model.safetensors").read_bytes()
    sha256 = hashlib.sha256(blob).hexdigest()
    reached = set()
    for _ in range(1000):
        bad_blob = blob if file == "config.json" else damaged(blob, draw)
        # The config agrees to the damaged weights, or the hash alone would be tested.
        bad_config = config.replace(sha256.encode(), hashlib.sha256(bad_blob).hexdigest().encode())
        if file != "model.safetensors":
            bad_config = damaged(bad_config, draw)
        try:
            loaded = weights.decode(bad_config, bad_blob, "here")
        except WeightsError as error:
            reached.add(str(error)[:30])
        else:
            shapes = {key: tuple(value.shape) for key, value in loaded.weights.items()}
            assert shapes == loaded.rule.weight_shapes()
            assert all(torch.isfinite(value).all() for value in loaded.weights.values())
    # The damage gets past the first check.
    assert len(reached) > 5


def test_any_bytes_at_all_end_in_one_of_the_two_errors(tmp_path: Path):
    hypothesis = pytest.importorskip("hypothesis")
    strategies = hypothesis.strategies

    @hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @hypothesis.given(strategies.binary(max_size=200), strategies.binary(max_size=200))
    def check(config: bytes, blob: bytes) -> None:
        (tmp_path / "config.json").write_bytes(config)
        (tmp_path / "model.safetensors").write_bytes(blob)
        with pytest.raises((WeightsError, WeightsUnavailable)):
            load_folder(tmp_path)

    check()
