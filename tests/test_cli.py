"""The command: its errors are one line, its results are those of the calls behind it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from learned_optim import __version__, cli, describe, publishing, weights
from learned_optim.cost import StepCost
from learned_optim.rules import Adam, StateSpec
from learned_optim.weights import LoadedRule, save_folder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def rule(tmp_path: Path) -> Path:
    folder = tmp_path / "rule"
    save_folder(folder, Adam(), Adam().init_weights(torch.Generator()), name="a-rule")
    return folder


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must end with exit code 2 and one line, which is returned."""

    def run(*argv: str | Path) -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in argv])
        assert caught.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return run


def test_the_demo_prints_its_table_and_writes_where_it_is_told(
    rule: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    argv = ["demo", "--rule", rule, "--steps", "2", "--seeds", "1", "--quiet", "--folder", out]
    cli.main([*map(str, argv), "--activations", "tanh"])
    printed = capsys.readouterr()
    assert "LearnedOptimizer (a-rule)" in printed.out
    assert "64-64-10, tanh" in printed.out
    assert str(out / "digits.png") in printed.out
    assert printed.err == ""
    assert (out / "digits.json").exists()


def test_the_demo_shows_a_progress_bar(
    rule: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    argv = ["demo", "--rule", rule, "--steps", "2", "--seeds", "1", "--folder", tmp_path]
    cli.main([*map(str, argv), "--activations", "tanh"])
    assert "100%" in capsys.readouterr().err


def test_errors_are_one_line_without_a_traceback(
    rule: Path, tmp_path: Path, fails: Callable[..., str]
):
    assert "does not exist" in fails("demo", "--rule", tmp_path / "none")
    assert "steps must be in" in fails("demo", "--rule", rule, "--steps", "0")
    assert "'swish'" in fails("demo", "--rule", rule, "--activations", "swish")
    assert "none.toml" in fails("meta-train", tmp_path / "none.toml")
    assert "user/repo" in fails("publish", rule, "not a repo")
    assert "no README.md" in fails("publish", rule, "user/rule")
    assert "no bundled rule is called 'l2l-mnits'" in fails("info", "l2l-mnits")
    (rule / "model.safetensors").write_bytes(b"")
    assert "damaged or replaced" in fails("info", rule)


def test_a_file_that_is_no_recipe_is_an_error(tmp_path: Path, fails: Callable[..., str]):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("no = [toml")
    assert "recipe.toml" in fails("meta-train", recipe)


def test_a_missing_extra_says_what_to_install(
    tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "learned_optim.demo", None)
    assert "pip install 'learned-optim[meta-training]'" in fails("demo")


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, rule: Path):
    def broken(source: str) -> str:
        raise KeyError("a bug")

    monkeypatch.setattr(describe, "describe", broken)
    with pytest.raises(KeyError, match="a bug"):
        cli.main(["info", str(rule)])


def test_info_says_what_a_rule_is_and_costs(
    rule: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    cost = StepCost(123.4, times_adam=4.56, parameters=1000, backend="eager")
    monkeypatch.setattr(describe, "step_cost", lambda loaded: cost)
    cli.main(["info", str(rule)])
    sha256 = hashlib.sha256((rule / "model.safetensors").read_bytes()).hexdigest()
    assert capsys.readouterr().out.splitlines() == [
        "name: a-rule",
        "rule: adam",
        "config: learning_rate=0.001, beta1=0.9, beta2=0.999, eps=1e-08",
        f"sha256: {sha256}",
        "weights: 3 numbers, 12 bytes, shared by all parameters",
        "state: 8 bytes per parameter, 0 per tensor (Adam: 8)",
        "step: 123 ns per parameter, 4.6 times Adam's (measured now: 1,000 parameters, one thread, "
        "backend 'eager')",
        "licence: not stated",
    ]


def test_info_sums_up_licence_and_metrics(rule: Path, capsys: pytest.CaptureFixture[str]):
    (rule / "README.md").write_text("---\ntags: []\nlicense: apache-2.0\n---\n")
    metrics = {"validation": {"score": 0.123456, "history": [1, 2]}, "outer_steps": 7}
    (rule / "metrics.json").write_text(json.dumps(metrics))
    cli.main(["info", str(rule)])
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "licence: apache-2.0",
        "metrics validation.score: 0.1235",
        "metrics outer_steps: 7",
    ]


def test_info_survives_broken_metrics(rule: Path, capsys: pytest.CaptureFixture[str]):
    (rule / "metrics.json").write_bytes(b"\xff{")
    cli.main(["info", str(rule)])
    assert "metrics metrics.json: cannot be read" in capsys.readouterr().out


def test_state_bytes_are_counted_in_the_storage_dtype():
    @dataclasses.dataclass(frozen=True)
    class Half(Adam):
        """Stores half precision, and two numbers for each tensor."""

        @property
        def state_spec(self) -> dict[str, StateSpec]:
            return {
                "a": StateSpec(rows=3, dtype=torch.float16),
                "b": StateSpec(rows=2, per="tensor"),
            }

    assert describe.state_bytes(Half()) == (6, 8)


def test_list_names_every_bundled_rule(capsys: pytest.CaptureFixture[str]):
    cli.main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(r"[ :]", line)[0] for line in lines] == weights.bundled_names()


def test_publish_hands_its_arguments_on(
    rule: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    calls = []

    def publish(*args: object, **options: object) -> str:
        calls.append((args, options))
        return "user/rule@abc"

    monkeypatch.setattr(publishing, "publish", publish)
    cli.main(["publish", str(rule), "user/rule", "--tag", "v1", "--private"])
    assert calls == [((rule, "user/rule"), {"tag": "v1", "private": True})]
    assert "rule='user/rule@abc'" in capsys.readouterr().out


def test_meta_train_hands_its_arguments_on(
    rule: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from learned_optim import meta_training

    calls = []

    def run(recipe: Path, **options: object) -> LoadedRule:
        calls.append((recipe, options))
        return weights.load_folder(rule)

    monkeypatch.setattr(meta_training, "run", run)
    cli.main(["meta-train", "r.toml", "--resume", "--output", "out"])
    expected = {"output": Path("out"), "resume": True, "progress": True, "device": "cpu"}
    assert calls == [(Path("r.toml"), expected)]
    assert capsys.readouterr().out.startswith("a-rule: weights sha256 ")


def test_the_package_runs_as_a_module():
    run = subprocess.run(
        [sys.executable, "-m", "learned_optim", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert run.stdout.strip() == __version__


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


def test_every_command_that_the_documents_mention_is_there(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    usage = capsys.readouterr().out
    texts = [path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), ROOT / "Makefile"]]
    mentioned = set(re.findall(r"learned-optim ((?!https)[a-z][a-z-]*)", "\n".join(texts)))
    assert {"demo", "meta-train"} <= mentioned
    for command in mentioned:
        assert re.search(rf"^ +{command}(\s|$)", usage, re.MULTILINE), command
