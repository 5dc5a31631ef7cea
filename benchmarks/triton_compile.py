"""What Triton's compiler makes of the kernels for compute capability 9.0, without a GPU.

    python -m benchmarks.triton_compile               all; writes results/triton_compile.json
    python -m benchmarks.triton_compile --only NAME   those whose name contains it; written nowhere

Question: do the kernels spill registers or compute in float64, and how near to the memory's limit
can they come?
Method: compile with the assembler that comes with triton, and read registers, memory and the
machine code. Bytes are what a step must move for each parameter, survey included. Two predictions,
which assume an H200 (132 multiprocessors at 1.755 GHz, 4.3 TB/s): the memory's limit, and how long
it takes to issue the instructions, four a clock and multiprocessor. Nothing here was measured on a
GPU. Fails where a kernel spills or has float64 instructions.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.results import RESULTS, provenance, write_json
from learned_optim.backends.triton import constants as made
from learned_optim.backends.triton import kernels

CAPABILITY = 90
MULTIPROCESSORS, CLOCK, BANDWIDTH = 132, 1.755e9, 4.3e12
ISSUED = 4  # instructions a clock and multiprocessor
FUSED_ADAM_BYTES = 28  # parameter and both moments read and written, gradient read; float32
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {
    "grads": "*i64", "tensors": "*i64", "owners": "*i32", "firsts": "*i64", "sizes": "*i64",
    "blocks": "*i64", "finite": "*u8", "columns": "*fp32", "matrices": "*fp16", "signals": "*fp32",
    "steps": "*fp32", "partials": "*fp32", "rows": "*fp32",
}  # fmt: skip
NUMBERS = {"stride": "i32", "start": "i32"}


@dataclass(frozen=True)
class Variant:
    """One kernel as it is launched.

    Attributes:
        name: in the table.
        kernel: of `learned_optim.backends.triton.kernels`.
        constants: all it is compiled for, with `num_warps` and `enable_fp_fusion`.
        moved: bytes a step of the rule moves for each parameter, its survey included.
        block: coordinates a program moves.
        state: bytes of state a parameter.
    """

    name: str
    kernel: Any
    constants: dict[str, Any]
    moved: int | None
    block: int | None
    state: int | None = None


def _dtypes(**kinds: Any) -> dict[str, Any]:  # noqa: ANN401, triton's dtypes
    return {"GRAD": tl.float32, "PARAM": tl.float32, "ALIGNED": True, **kinds}


def l2l(layers: int, hidden: int, half: bool, wide: bool = True) -> Variant:
    """The update of `l2l`, its state in float32 or float16; `wide`: tensors with wide loads."""
    constants = made.l2l_constants(made.L2LSizes(layers, hidden, 10.0, 0.1))
    kinds = _dtypes(CELL=tl.float16 if half else tl.float32, ALIGNED=wide)
    flags = {"MASKED": True, "TENSOR_LR": False}
    state = 2 * layers * hidden * (2 if half else 4)
    name = f"l2l ({layers}, {hidden}), float{16 if half else 32} state" + ("" if wide else ", odd")
    moved = 4 + 4 + 8 + 2 * state
    return Variant(
        name, kernels.l2l_update, kinds | flags | constants, moved, constants["BLOCK"], state
    )


def default(hidden: int, unfinished: bool = False, tensor_lr: bool = False) -> Variant:
    """The update of `default`; `unfinished`: of a matrix, before the matrix stage."""
    constants = made.default_constants(hidden)
    kinds = _dtypes(MOMENTS=tl.float32, CELL=tl.float16)
    flags = {"MASKED": True, "TENSOR_LR": tensor_lr, "UNFINISHED": unfinished}
    name = f"default {hidden}" + (", matrix" if unfinished else "")
    name += ", lr on the device" if tensor_lr else ""
    state = 12 + 4 * hidden
    moved = 20 + 12 + 2 * state
    return Variant(
        name, kernels.default_update, kinds | flags | constants, moved, constants["BLOCK"], state
    )


def variants() -> list[Variant]:
    """What is launched for float32 parameters and gradients."""
    surveys = [
        Variant(f"survey{name}", kernels.survey, _dtypes() | constants, None, None)
        for name, constants in (
            ("", made.survey_constants(False)),
            (" with sums", made.survey_constants(True)),
        )
    ]
    return [
        l2l(2, 20, half=False),
        l2l(2, 20, half=False, wide=False),
        l2l(1, 8, half=True),
        l2l(1, 8, half=False),
        l2l(1, 8, half=False, wide=False),
        l2l(1, 4, half=True),
        l2l(1, 4, half=False),
        default(4),
        default(4, tensor_lr=True),
        default(4, unfinished=True),
        default(8),
        *surveys,
        Variant("add up", kernels.add_up, made.add_up_constants(6), None, None),
    ]


def compile_kernel(variant: Variant) -> Any:  # noqa: ANN401, triton's compiled kernel
    """The kernel's code and what the compiler says of it."""
    options = {key: variant.constants[key] for key in ("num_warps", "enable_fp_fusion")
               if key in variant.constants}  # fmt: skip
    constants = {key: x for key, x in variant.constants.items() if key not in options}
    names = variant.kernel.arg_names
    types = {**POINTERS, **NUMBERS}
    signature = {
        name: "constexpr" if name in constants else types.get(name, "fp32") for name in names
    }
    if constants.get("TENSOR_LR"):
        signature["lr"] = "*fp32"
    # torch's allocations are aligned, and launches say so.
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if signature[name].startswith("*")
    }
    source = ASTSource(variant.kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)


def ask(tool: str, *arguments: str) -> str:
    """Output of one of the tools that come with triton."""
    command = [str(TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def number(pattern: str, text: str) -> int:
    """The number that a pattern finds.

    Raises:
        ValueError: where it finds none.
    """
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"{pattern!r} is not in {text!r}")
    return int(found.group(1))


def examine(variant: Variant) -> dict[str, Any]:
    """Compile, and read the machine code."""
    kernel = compile_kernel(variant)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        usage, code = ask("cuobjdump", "-res-usage", str(path)), ask("nvdisasm", "-c", str(path))
    line = r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)[^;]*;"
    instructions = re.findall(line, code)

    def count(pattern: str) -> int:
        return sum(re.match(pattern, instruction) is not None for instruction in instructions)

    row = {
        "variant": variant.name,
        "block": variant.block,
        "warps": variant.constants.get("num_warps", 4),
        "registers": number(r"REG:(\d+)", usage),
        "stack_bytes": number(r"STACK:(\d+)", usage),
        "local_bytes": number(r"LOCAL:(\d+)", usage),
        "spills": count(r"STL|LDL"),
        "shared_bytes": kernel.metadata.shared,
        "instructions": len(instructions),
        "float64": count(r"D(ADD|MUL|FMA|SETP|MNMX)|F2F\.F64|F2F\.\w+\.F64|I2F\.F64"),
        "tensor_core": count(r"HMMA|HGMMA"),
        "loads": count("LDG"),
        "state_bytes_per_parameter": variant.state,
        "bytes_per_parameter": variant.moved,
    }
    return row | predictions(row)


def predictions(row: dict[str, Any]) -> dict[str, Any]:
    """Limits in picoseconds a parameter, and the larger against fused Adam's bytes."""
    moved, block = row["bytes_per_parameter"], row["block"]
    if moved is None or block is None:
        return {}
    memory = 1e12 * moved / BANDWIDTH
    clocks = row["instructions"] * row["warps"] / block / ISSUED
    issue = 1e12 * clocks / MULTIPROCESSORS / CLOCK
    adam = 1e12 * FUSED_ADAM_BYTES / BANDWIDTH
    return {
        "memory_limit_ps": memory,
        "issue_limit_ps": issue,
        "memory_limit_times_fused_adam": memory / adam,
        "limit_times_fused_adam": max(memory, issue) / adam,
    }


def faults(row: dict[str, Any]) -> list[str]:
    """What must not be in a kernel."""
    bad = ("stack_bytes", "local_bytes", "spills", "float64")
    return [f"{row['variant']}: {row[key]} {key}" for key in bad if row[key]]


def table(rows: list[dict[str, Any]]) -> str:
    """Fixed-width text."""
    columns: list[tuple[str, int, Callable[[dict[str, Any]], str]]] = [
        ("registers", 10, lambda row: f"{row['registers']}"),
        ("spills", 7, lambda row: f"{row['spills']}"),
        ("float64", 8, lambda row: f"{row['float64']}"),
        ("shared B", 9, lambda row: f"{row['shared_bytes']}"),
        ("B/param", 8, lambda row: f"{row['bytes_per_parameter'] or ''}"),
        ("memory ps", 10, lambda row: _tenths(row.get("memory_limit_ps"))),
        ("issue ps", 9, lambda row: _tenths(row.get("issue_limit_ps"))),
        ("x Adam", 7, lambda row: _tenths(row.get("limit_times_fused_adam"))),
    ]
    lines = [f"{'not measured on a GPU':32}" + "".join(f"{name:>{w}}" for name, w, _ in columns)]
    lines += [
        f"{row['variant']:32}" + "".join(f"{text(row):>{w}}" for _, w, text in columns)
        for row in rows
    ]
    return "\n".join(lines)


def _tenths(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def main() -> None:
    """Compile, print, write, complain."""
    parser = argparse.ArgumentParser(description="Compile the Triton kernels without a GPU.")
    parser.add_argument("--only", action="append", help="a part of the variants' names")
    options = parser.parse_args()
    chosen = [
        variant
        for variant in variants()
        if options.only is None or any(part in variant.name for part in options.only)
    ]
    rows = [examine(variant) for variant in chosen]
    print(table(rows))
    if options.only is None:
        facts = {
            "measured_on_a_gpu": False,
            "triton": triton.__version__,
            "capability": CAPABILITY,
            "assumed": {
                "multiprocessors": MULTIPROCESSORS,
                "clock_hz": CLOCK,
                "bytes_per_second": BANDWIDTH,
                "fused_adam_bytes_per_parameter": FUSED_ADAM_BYTES,
            },
        }
        write_json(RESULTS / "triton_compile.json", {**provenance(), **facts, "rows": rows})
    found = [fault for row in rows for fault in faults(row)]
    if not rows or found:
        sys.exit("\n".join(found) or f"no variant is called {options.only}")


if __name__ == "__main__":
    main()
