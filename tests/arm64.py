"""The kernels of a 64-bit ARM, tested on a machine that is none: a plugin for pytest.

    python tests/arm64.py                              # compiles them, counts their instructions
    python -m pytest -p arm64 tests/test_kernels.py    # with tests/ on PYTHONPATH, see `make arm64`

clang (from the package ziglang) compiles the kernels for Linux on arm64, unicorn emulates the CPU,
and `native.library()` gives a stand-in whose functions run there. The emulated CPU sees the memory
of this process at its own addresses, so tensors, structs and tests are those of every other run.
What such a run cannot show: times, and threads, as starting one always fails (which the kernels
bear: they go on alone).
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import mmap
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from learned_optim import kernels
from learned_optim.kernels import build, native

# By name, as an environment without them type-checks this file too.
unicorn = importlib.import_module("unicorn")
arm = importlib.import_module("unicorn.arm64_const")
elf = importlib.import_module("elftools.elf.elffile")

# Bytes of the emulator's own memory: the library, an instruction for each function that it imports,
# and a stack. It is memory of this process too, at the same addresses: nothing else lies there.
LIBRARY, IMPORTS, STACK = 1 << 26, 1 << 16, 1 << 20
RETURN = struct.pack("<I", 0xD65F03C0)
USE_FLOATS = 3 << 20  # CPACR_EL1

# Relocations, "ELF for the Arm 64-bit Architecture", 5.7.
ABSOLUTE, DATA, FUNCTION, RELATIVE = 257, 1025, 1026, 1027

NO_THREAD = 11  # EAGAIN


def _c(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    """A function of this process's C library."""
    function = getattr(ctypes.CDLL(None), name)
    function.restype, function.argtypes = result, arguments
    return function


_malloc = _c("malloc", ctypes.c_void_p, ctypes.c_size_t)
_free = _c("free", None, ctypes.c_void_p)
_memalign = _c("aligned_alloc", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)


def _mappings() -> list[tuple[int, int]]:
    """Start and end of all memory of this process that can be read."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, rights = line.split()[:2]
        if "r" in rights:
            start, end = where.split("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def _write(address: int, data: bytes) -> None:
    ctypes.memmove(address, data, len(data))


class Emulated:
    """Looks like the `ctypes.CDLL` of the kernels; `learned_optim_*` run on an emulated CPU."""

    def __init__(self, path: Path) -> None:
        self._cpu = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self._memory = mmap.mmap(-1, LIBRARY + IMPORTS + STACK)
        self._library = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._stack = self._library + LIBRARY + IMPORTS + STACK  # where it begins, downwards
        self._returned = self._library + LIBRARY  # where a finished call goes back to
        self._imports: dict[int, str] = {}
        own = self._library, self._stack
        self._seen = [own]  # of this process, by the emulated CPU, in the call that runs
        self._cpu.mem_map_ptr(own[0], own[1] - own[0], unicorn.UC_PROT_ALL, own[0])
        with path.open("rb") as file:
            self._load(elf.ELFFile(file))
        first, last = self._returned + 1, self._returned + IMPORTS - 1
        self._cpu.hook_add(unicorn.UC_HOOK_CODE, self._imported, begin=first, end=last)
        self._cpu.hook_add(unicorn.UC_HOOK_MEM_UNMAPPED, self._look_up)
        self._cpu.reg_write(arm.UC_ARM64_REG_CPACR_EL1, USE_FLOATS)

    def _load(self, library: Any) -> None:
        for segment in library.iter_segments("PT_LOAD"):
            _write(self._library + segment["p_vaddr"], segment.data())
        symbols = library.get_section_by_name(".dynsym")
        self._exports = {s.name: self._library + s["st_value"] for s in symbols.iter_symbols()}
        for section in library.iter_sections("SHT_RELA"):
            for entry in section.iter_relocations():
                kind, value = entry["r_info_type"], self._library
                assert kind in (ABSOLUTE, DATA, FUNCTION, RELATIVE), kind
                if kind != RELATIVE:
                    symbol = symbols.get_symbol(entry["r_info_sym"])
                    inside = self._exports[symbol.name] if symbol["st_value"] else None
                    value = inside or self._import(symbol.name)
                target = struct.pack("<Q", value + entry["r_addend"])
                _write(self._library + entry["r_offset"], target)

    def _import(self, name: str) -> int:
        """Where the library finds a function of that name."""
        known = {other: address for address, other in self._imports.items()}
        if name not in known:
            known[name] = self._returned + 16 * (1 + len(self._imports))
            self._imports[known[name]] = name
            _write(known[name], RETURN)
        return known[name]

    def _look_up(self, cpu: Any, access: int, address: int, *_: object) -> bool:
        """Show the emulated CPU the memory of this process that it asks for; False: none there."""
        for start, end in _mappings():
            if not start <= address < end:
                continue
            for other, other_end in self._seen:  # beside it, or the same, which has grown
                if start < other_end <= address:
                    start = other_end
                if address < other < end:
                    end = other
            rights = unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE
            cpu.mem_map_ptr(start, end - start, rights, start)
            self._seen.append((start, end))
            return True
        return False

    def _imported(self, cpu: Any, address: int, *_: object) -> None:
        """Do what a function of the C library does, by this process's own."""
        name = self._imports[address]
        first, second, third = (cpu.reg_read(arm.UC_ARM64_REG_X0 + i) for i in range(3))
        result = first
        if name in ("expf", "log2"):
            self._mathematics(name)
            return
        if name == "malloc":
            result = _malloc(first)
        elif name == "free":
            _free(first)
        elif name == "posix_memalign":
            memory = _memalign(second, -(-third // second) * second)
            _write(first, struct.pack("<Q", memory or 0))
            result = 0 if memory else 12
        elif name in ("memcpy", "memmove"):
            ctypes.memmove(first, second, third)
        elif name == "memset":
            ctypes.memset(first, second & 255, third)
        else:
            assert name == "pthread_create", name
            result = NO_THREAD
        cpu.reg_write(arm.UC_ARM64_REG_X0, result)

    def _mathematics(self, name: str) -> None:
        single = name.endswith("f")
        kind, code, bits = (ctypes.c_float, "f", "I") if single else (ctypes.c_double, "d", "Q")
        register = arm.UC_ARM64_REG_S0 if single else arm.UC_ARM64_REG_D0
        (value,) = struct.unpack(code, struct.pack(bits, self._cpu.reg_read(register)))
        result = getattr(ctypes.CDLL("libm.so.6"), name)
        result.restype = kind
        (pattern,) = struct.unpack(bits, struct.pack(code, result(kind(value))))
        self._cpu.reg_write(register, pattern)

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name not in self._exports:
            raise AttributeError(name)
        return functools.partial(self._call, self._exports[name])

    def _call(self, function: int, *arguments: Any) -> int:
        """With integers and `ctypes.byref`, as the kernels' functions take."""
        for index, argument in enumerate(arguments):
            value = ctypes.addressof(argument._obj) if hasattr(argument, "_obj") else argument or 0
            self._cpu.reg_write(arm.UC_ARM64_REG_X0 + index, value)
        self._cpu.reg_write(arm.UC_ARM64_REG_SP, self._stack)
        self._cpu.reg_write(arm.UC_ARM64_REG_LR, self._returned)
        try:
            self._cpu.emu_start(function, self._returned)
        finally:  # torch may give memory back to the system before the next call
            for start, end in self._seen[1:]:
                self._cpu.mem_unmap(start, end - start)
            del self._seen[1:]
        return ctypes.c_int32(self._cpu.reg_read(arm.UC_ARM64_REG_X0) & 0xFFFFFFFF).value


def compiled(wheel: str) -> Path:
    """The library of the wheel with that tag, unless these sources have one already."""
    library = build.candidates()[-1].with_name(f"{wheel}.so")
    if not library.exists():
        build.build(library, build.WHEELS[wheel])
    return library


def linux() -> Path:
    """What the tests run."""
    return compiled("manylinux_2_17_aarch64")


@pytest.fixture(scope="session", autouse=True)
def emulated_kernels() -> None:
    """In place of this machine's own."""
    emulated = Emulated(linux())
    native._load = functools.cache(lambda: emulated)


def instructions(emulated: Emulated, layers: int, hidden: int, dtype: torch.dtype) -> float:
    """How many a step of the paper's rule takes, a coordinate; `dtype` is the state's."""
    count, many = 0, 2048
    weights = torch.randn(kernels.weight_count(layers, hidden, 2)) / 10
    state = torch.zeros(2 * layers * hidden, many, dtype=dtype)

    def block(cpu: object, address: int, size: int, data: object) -> None:
        nonlocal count
        count += size // 4

    hook = emulated._cpu.hook_add(unicorn.UC_HOOK_BLOCK, block)
    kernels.cells_update_(
        [torch.zeros(many)], [torch.randn(many)], [state], weights, layers=layers, hidden=hidden,
        p=10.0, lr=1.0,
    )  # fmt: skip
    emulated._cpu.hook_del(hook)
    return count / many


def main() -> None:
    """Compile for all, and count instructions."""
    lines = [f"compiled {library}" for library in (linux(), compiled("macosx_11_0_arm64"))]
    emulated = Emulated(linux())
    native._load = functools.cache(lambda: emulated)
    torch.set_num_threads(1)
    for size in ((2, 20), (1, 8), (1, 4)):
        counts = (instructions(emulated, *size, dtype) for dtype in (torch.float32, torch.float16))
        shown = " and ".join(f"{count:.0f}" for count in counts)
        lines.append(f"{size}: {shown} instructions a coordinate, state in float32 and in float16")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
