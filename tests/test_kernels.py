"""The C++ kernels against the rule itself in float64, on every instruction set of this machine.

Expected rounding: float32 with activations to 4e-7 and sums in float32 lanes: 3e-6 of the largest
entry of each weight's gradient is typical, 1e-4 allowed; states and steps differ by under 2e-6.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from learned_optim import kernels
from learned_optim.cells import CELLS
from learned_optim.kernels import build, native
from learned_optim.rules.base import Coordinates
from learned_optim.rules.l2l import L2L

pytestmark = pytest.mark.usefixtures("built_kernels")


def make(layers=2, hidden=20, preprocess: Any = "log_sign", scale=0.1, cell="lstm"):
    """A rule, its weights, the same weights flat, and the kernels' keywords."""
    rule = L2L(cell=cell, layers=layers, hidden=hidden, preprocess=preprocess, scale=scale)
    weights = rule.init_weights(torch.Generator().manual_seed(3))
    flat = torch.cat([weights[name].reshape(-1) for name in rule.weight_shapes()])
    p = rule.p if preprocess == "log_sign" else None
    return rule, weights, flat, {"layers": layers, "hidden": hidden, "p": p, "scale": scale}


def draw(rule, steps, n, seed=0):
    """Gradients over the whole range of float32's usual sizes, state and cotangents."""
    generator = torch.Generator().manual_seed(seed)
    grads = torch.randn(steps, n, generator=generator)
    if rule.preprocess == "log_sign":
        grads *= 10 ** (18 * torch.rand(steps, n, generator=generator) - 12)
    grads[steps // 2] = 0.0
    state = 0.5 * torch.randn(rule.state_spec["cell"].rows, n, generator=generator)
    return grads, state, torch.randn(steps, n, generator=generator)


def reference(rule, weights, grads, state, cotangents):
    """Weights' gradients by autograd in float64, the last state and the steps."""
    weights = {name: value.double().requires_grad_() for name, value in weights.items()}
    rows, steps = {"cell": state.double()}, []
    for grad in grads.double():
        step, rows = rule.update(Coordinates(grad, grad), rows, grad.new_zeros(0, 1), weights)
        steps.append(step)
    loss = (torch.stack(steps) * cotangents.double()).sum()
    found = torch.autograd.grad(loss, list(weights.values()))
    return found, rows["cell"].detach(), torch.stack(steps).detach()


def assert_grads_close(flat_grad, expected, tolerance=1e-4):
    parts = flat_grad.double().split([part.numel() for part in expected])
    for got, wanted in zip(parts, expected, strict=True):
        error = (got.view_as(wanted) - wanted).abs().max() / wanted.abs().max()
        assert error < tolerance


ELMAN: dict[str, Any] = {"layers": 1, "hidden": 1, "p": None, "cell": "elman"}
SHAPES = [(2, 20, "log_sign"), (1, 8, "log_sign"), (2, 4, "none"), (3, 7, "log_sign")]


@pytest.mark.parametrize(("layers", "hidden", "preprocess"), SHAPES)
@pytest.mark.parametrize("n", [1, 3, 63, 64, 65, 1000])
def test_weight_gradients_equal_autograd_in_float64(level, layers, hidden, preprocess, n):
    rule, weights, flat, sizes = make(layers, hidden, preprocess)
    inputs = draw(rule, 6, n)
    expected, last, _ = reference(rule, weights, *inputs)
    flat_grad, state = kernels.lstm_bptt(*inputs, flat, **sizes)
    assert_grads_close(flat_grad, expected)
    assert (state.double() - last).abs().max() < 2e-6


def test_weight_gradients_stay_exact_over_a_hundred_steps():
    rule, weights, flat, sizes = make()
    inputs = draw(rule, 100, 40)
    expected, last, _ = reference(rule, weights, *inputs)
    flat_grad, state = kernels.lstm_bptt(*inputs, flat, **sizes)
    assert_grads_close(flat_grad, expected)
    assert (state.double() - last).abs().max() < 4e-6


def test_sums_over_many_tiles_are_all_counted(level):
    rule, weights, flat, sizes = make(1, 4)
    inputs = draw(rule, 2, 40_000)
    expected, _, _ = reference(rule, weights, *inputs)
    flat_grad, _ = kernels.lstm_bptt(*inputs, flat, **sizes)
    assert_grads_close(flat_grad, expected)


@pytest.mark.parametrize(("layers", "hidden", "preprocess"), SHAPES)
@pytest.mark.parametrize("n", [1, 63, 65])
def test_steps_in_place_equal_the_rule(level, layers, hidden, preprocess, n):
    rule, weights, flat, sizes = make(layers, hidden, preprocess, scale=1.0)
    grads, state, cotangents = draw(rule, 5, n)
    _, last, expected = reference(rule, weights, grads, state, cotangents)
    steps = torch.stack([kernels.cells_step_(grad, state, flat, **sizes) for grad in grads])
    assert (steps.double() - expected).abs().max() < 2e-6
    assert (state.double() - last).abs().max() < 2e-6


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell != "lstm"])
@pytest.mark.parametrize(("layers", "hidden", "preprocess"), SHAPES)
def test_steps_of_the_other_cells_equal_the_rule(level, cell, layers, hidden, preprocess):
    rule, weights, flat, sizes = make(layers, hidden, preprocess, scale=1.0, cell=cell)
    weights = {name: 3.0 * value for name, value in weights.items()}  # into saturation
    grads, state, cotangents = draw(rule, 5, 65)
    grads[0, 7] = math.nan
    _, last, expected = reference(rule, weights, grads, state, cotangents)
    steps = [kernels.cells_step_(grad, state, 3.0 * flat, cell=cell, **sizes) for grad in grads]
    good = expected.isfinite()
    assert torch.equal(torch.stack(steps).isfinite(), good)
    assert (torch.stack(steps).double() - expected)[good].abs().max() < 1e-5
    assert (state.double() - last)[last.isfinite()].abs().max() < 1e-5


def test_the_kernels_know_the_sizes_of_all_cells():
    assert kernels.CELLS.keys() == CELLS.keys()
    for cell in CELLS:
        rule = L2L(cell=cell, layers=3, hidden=5)
        count = sum(math.prod(shape) for shape in rule.weight_shapes().values())
        assert kernels.weight_count(3, 5, 2, cell) == count
    with pytest.raises(ValueError, match=r"cell must be one of .* but is 'elman'"):
        kernels.cells_step_(torch.zeros(1), torch.zeros(1, 1), torch.zeros(1), **ELMAN)


@pytest.mark.parametrize("cell", CELLS)
def test_each_perturbation_steps_with_its_own_weights(cell):
    rule, _, flat, sizes = make(1, 8, cell=cell)
    sizes["cell"] = cell
    _, state, _ = draw(rule, 1, 37)
    grads, rules = torch.randn(3, 37), torch.stack([flat, 0.5 * flat, -flat])
    together = state.repeat(3, 1, 1)
    steps = kernels.cells_step_(grads, together, rules, **sizes)
    for index in range(3):
        alone = state.clone()
        step = kernels.cells_step_(grads[index], alone, rules[index].contiguous(), **sizes)
        assert torch.equal(steps[index], step)
        assert torch.equal(together[index], alone)


def test_the_number_of_threads_does_not_change_a_bit():
    rule, _, flat, sizes = make()
    inputs = draw(rule, 4, 3001)
    one, _ = kernels.lstm_bptt(*inputs, flat, **sizes, threads=1)
    for threads in (2, 3, 7):
        several, _ = kernels.lstm_bptt(*inputs, flat, **sizes, threads=threads)
        assert torch.equal(one, several)


def test_saturated_gates_give_finite_gradients(level):
    rule, weights, _, sizes = make(1, 8)
    weights = {name: 300.0 * value for name, value in weights.items()}
    flat = torch.cat([weights[name].reshape(-1) for name in rule.weight_shapes()])
    flat_grad, _ = kernels.lstm_bptt(*draw(rule, 8, 65), flat, **sizes)
    assert flat_grad.isfinite().all()
    inputs = draw(rule, 1, 65)
    _, last, _ = reference(rule, weights, *inputs)
    _, state = kernels.lstm_bptt(*inputs, flat, **sizes)
    assert (state.double() - last).abs().max() < 1e-4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_reach_the_state_as_in_the_rule(level, value):
    rule, weights, flat, sizes = make(1, 4)
    grads, state, cotangents = draw(rule, 1, 40)
    grads[0, 7] = value
    _, last, _ = reference(rule, weights, grads, state, cotangents)
    kernels.cells_step_(grads[0], state, flat, **sizes)
    assert torch.equal(state.isfinite(), last.isfinite())
    finite = last.isfinite()
    assert (state.double() - last)[finite].abs().max() < 2e-6


def test_subnormal_results_still_work_for_the_caller_afterwards():
    rule, _, flat, sizes = make(1, 4)
    kernels.lstm_bptt(*draw(rule, 2, 5), flat, **sizes, threads=1)
    assert torch.tensor(1e-30).mul(1e-10).item() > 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grads": torch.zeros(2, 5, dtype=torch.float64)}, "grads must be float32"),
        ({"grads": torch.zeros(5, 2).T}, "grads must be contiguous"),
        ({"grads": torch.zeros(0, 5)}, "T, N > 0"),
        ({"cotangents": torch.zeros(3, 5)}, "cotangents must have shape"),
        ({"state": torch.zeros(7, 5)}, "state must have shape"),
        ({"weights": torch.zeros(3)}, "weights must have shape"),
        ({"layers": 9}, r"layers must be in \[1, 8\] but is 9"),
        ({"hidden": 0}, r"hidden must be in"),
        ({"p": -1.0}, "p must be in"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    rule, _, flat, sizes = make(1, 4)
    grads, state, cotangents = draw(rule, 2, 5)
    arguments = {"grads": grads, "state": state, "cotangents": cotangents, "weights": flat}
    with pytest.raises(ValueError, match=message):
        kernels.lstm_bptt(**(arguments | sizes | change))


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv("LEARNED_OPTIM_ISA", "mmx")
    with pytest.raises(ValueError, match="mmx"):
        native.level()


def test_a_missing_library_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "candidates", lambda: [tmp_path / "none.so"])
    assert "learned_optim.kernels.build" in str(native._load.__wrapped__())


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_without_a_home_the_library_beside_the_package_is_all_there_is(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert build.candidates() == [Path(build.__file__).parent / build.LIBRARY]
    loaded = native._load.__wrapped__()
    assert not isinstance(loaded, str) or "not built" in loaded


def test_a_folder_of_the_library_that_may_not_be_entered_is_a_reason(monkeypatch, tmp_path):
    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(build, "candidates", lambda: [tmp_path / "none.so"])
    monkeypatch.setattr(Path, "exists", refused)
    assert "Permission denied" in str(native._load.__wrapped__())


def test_without_sources_there_is_no_library(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "SOURCES", tmp_path / "none")
    assert "are not there" in str(native._load.__wrapped__())


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="/proc/cpuinfo of an x86-64"
)
def test_the_library_finds_the_best_level_that_the_system_says_the_cpu_has():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    avx2 = {"avx2", "fma", "f16c"} <= flags
    avx512 = avx2 and {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= flags
    assert native.best_level() == avx2 + avx512


def test_a_stale_library_is_refused(monkeypatch):
    monkeypatch.setattr(build, "sources_hash", lambda: "another")
    assert "built from other sources" in str(native._load.__wrapped__())


def test_a_build_that_can_write_nowhere_says_so(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CXX", "true")
    target = tmp_path / "file" / "x" / "y.so"
    with pytest.raises(build.BuildError, match=r"cannot write to .*XDG_CACHE_HOME"):
        build.build(target)


def test_what_a_compiler_says_may_be_in_any_encoding(monkeypatch, tmp_path):
    compiler = tmp_path / "cxx"
    compiler.write_bytes(b"#!/bin/sh\nprintf 'Fehler: \\374' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(build.BuildError, match="Fehler"):
        build.build(tmp_path / "x.so")


def test_a_compiler_must_be_a_command(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", '"g++')
    with pytest.raises(build.BuildError, match="no command"):
        build.build(tmp_path / "x.so")


def test_without_a_compiler_the_build_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build, "has_zig", lambda: False)
    with pytest.raises(build.BuildError, match=r"\$CXX, or pip install ziglang"):
        build.build(tmp_path / "x.so")
    assert not list(tmp_path.iterdir())


def test_where_there_is_no_other_compiler_that_of_a_package_will_do(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build, "has_zig", lambda: True)
    for tag, target in build.WHEELS.items():
        monkeypatch.setattr(build, "this_machine", lambda t=target: t._replace(zig=None))
        found = build.find_compiler()
        assert found[1:] == ["-m", "ziglang", "c++", "-target", target.zig], tag
    monkeypatch.setattr(build, "this_machine", lambda: build.Target("riscv64", "linux"))
    with pytest.raises(build.BuildError, match="no C\\+\\+ compiler found"):
        build.find_compiler()


def test_a_failing_compiler_is_quoted(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(build.BuildError, match="failed"):
        build.build(tmp_path / "x.so")


def test_to_compile_for_another_machine_takes_zig(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(build.BuildError, match="pip install ziglang"):
        build.build(tmp_path / "x.so", build.WHEELS["manylinux_2_17_aarch64"])


@pytest.mark.skipif(os.name == "nt", reason="the compiler is a shell script")
@pytest.mark.parametrize("wheel", build.WHEELS)
def test_the_kernels_of_a_wheel_are_compiled_for_its_machine(monkeypatch, tmp_path, wheel):
    target, compiler, asked = build.WHEELS[wheel], tmp_path / "cxx", tmp_path / "asked"
    compiler.write_text(
        f'#!/bin/sh\necho "$@" >> {asked}\n'
        'while [ $# -gt 1 ]; do [ "$1" = -o ] && touch "$2"; shift; done\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setattr(build, "zig", lambda name: [str(compiler), "-target", name])
    assert build.build(tmp_path / "x.so", target) == tmp_path / "x.so"
    commands = asked.read_text().splitlines()
    assert all(f"-target {target.zig} " in command for command in commands)
    x86 = target.machine == "x86_64"
    assert len(commands) == (5 if x86 else 3)  # dispatch, a level each, the library
    assert any("-mavx512f" in command for command in commands) == x86
    assert any("-DWITH_X86" in command for command in commands) == x86
    assert any("--as-needed" in command for command in commands) == (target.system == "linux")


def test_importing_the_package_loads_no_library():
    code = "import learned_optim.kernels.native as n; print(n._load.cache_info().currsize)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
