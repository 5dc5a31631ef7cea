"""Triton's kernels where there is no GPU: in its interpreter, on the CPU.

What a kernel becomes, code for a GPU or calls of numpy, is decided when its module is imported. So
this is imported before anything else imports the kernels.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

import torch

KERNELS = "learned_optim.backends.triton.kernels"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def why_not() -> str | None:
    """What keeps the kernels from running here."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton (Linux)"
    return None


def import_kernels() -> None:
    """Import them as what can run here; only now `triton` is told to interpret."""
    if why_not() is not None or DEVICE.type == "cuda":
        return
    if KERNELS in sys.modules:
        raise ImportError(f"{KERNELS} was imported before, for a GPU")
    # All but our kernels stays as it is: other tests compile.
    importlib.import_module("triton.language")
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        importlib.import_module(KERNELS)
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before


import_kernels()
