"""The arguments of the library's functions, struct by struct as src/table.h has them.

What the fields mean is said there (of `Team` in src/team.h); order and types must be the same.
"""

from __future__ import annotations

import ctypes
from typing import Any

_Int32, _Int64, _Float, _Pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Team(ctypes.Structure):
    """See src/team.h."""

    _fields_ = (("run", _Pointer), ("place", _Pointer))

    @classmethod
    def of(cls, *functions: Any) -> Team:  # noqa: ANN401
        """From functions of a library, in the order of the fields."""
        return cls(*(ctypes.cast(function, _Pointer).value for function in functions))


class CellsArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("cell", _Int32),
        ("layers", _Int32),
        ("hidden", _Int32),
        ("inputs", _Int32),
        ("p", _Float),
        ("exp_p", _Float),
    )


class BpttArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("steps", _Int64),
        ("coordinates", _Int64),
        ("grads", _Pointer),
        ("state", _Pointer),
        ("cotangents", _Pointer),
        ("weights", _Pointer),
        ("last_state", _Pointer),
        ("weight_grads", _Pointer),
        ("scale", _Float),
        ("threads", _Int32),
    )


class VjpArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("leads", _Int64),
        ("coordinates", _Int64),
        ("grads", _Pointer),
        ("state", _Pointer),
        ("step_cotangents", _Pointer),
        ("state_cotangents", _Pointer),
        ("weights", _Pointer),
        ("widths", _Pointer),
        ("weight_grads", _Pointer),
        ("grad_cotangents", _Pointer),
        ("state_cotangents_before", _Pointer),
        ("scale", _Float),
        ("threads", _Int32),
    )


class StepArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("rules", _Int64),
        ("coordinates", _Int64),
        ("grads_stride", _Int64),
        ("weights_stride", _Int64),
        ("grads", _Pointer),
        ("weights", _Pointer),
        ("state", _Pointer),
        ("out", _Pointer),
        ("scale", _Float),
        ("threads", _Int32),
    )


class UpdateArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("count", _Int64),
        ("tensors", _Pointer),
        ("weights", _Pointer),
        ("scale", _Float),
        ("lr", _Float),
        ("keep", _Float),
        ("maximize", _Int32),
        ("param_type", _Int32),
        ("grad_type", _Int32),
        ("state_type", _Int32),
        ("threads", _Int32),
    )


class FiniteArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("count", _Int64),
        ("tensors", _Pointer),
        ("sizes", _Pointer),
        ("broken", _Pointer),
        ("type", _Int32),
        ("threads", _Int32),
    )


class TakeArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("count", _Int64),
        ("step", _Pointer),
        ("param", _Pointer),
        ("owed", _Pointer),
        ("lr", _Float),
        ("keep", _Float),
        ("share", _Float),
        ("due", _Float),
        ("param_type", _Int32),
        ("threads", _Int32),
    )


class SeeArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("count", _Int64),
        ("tensors", _Pointer),
        ("memory", _Float),
        ("ridge", _Float),
        ("threads", _Int32),
    )


class UnseeArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("count", _Int64),
        ("tensors", _Pointer),
        ("terms", _Pointer),
        ("lr", _Float),
        ("keep", _Float),
        ("param_type", _Int32),
        ("threads", _Int32),
    )


class StraightenArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("count", _Int64),
        ("iterations", _Int64),
        ("tensors", _Pointer),
        ("terms", _Pointer),
        ("quintics", _Pointer),
        ("lr", _Float),
        ("keep", _Float),
        ("param_type", _Int32),
        ("threads", _Int32),
    )


class NormalizeArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("count", _Int64),
        ("numbers", _Pointer),
        ("to", _Pointer),
        ("norm", _Pointer),
        ("type", _Int32),
        ("threads", _Int32),
    )


class FinishArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("count", _Int64),
        ("step", _Pointer),
        ("straight", _Pointer),
        ("param", _Pointer),
        ("owed", _Pointer),
        ("blend", _Float),
        ("size", _Float),
        ("share", _Float),
        ("due", _Float),
        ("lr", _Float),
        ("keep", _Float),
        ("straight_type", _Int32),
        ("param_type", _Int32),
        ("threads", _Int32),
    )


class DefaultArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("count", _Int64),
        ("rules", _Int64),
        ("weights_stride", _Int64),
        ("tensors", _Pointer),
        ("weights", _Pointer),
        ("signals", _Pointer),
        ("survey", _Pointer),
        ("lr", _Float),
        ("keep", _Float),
        ("hidden", _Int32),
        ("maximize", _Int32),
        ("guard", _Int32),
        ("param_type", _Int32),
        ("grad_type", _Int32),
        ("cell_type", _Int32),
        ("threads", _Int32),
    )


class DefaultControlArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("rules", _Int64),
        ("tensors", _Int64),
        ("weights", _Pointer),
        ("facts", _Pointer),
        ("step", _Pointer),
        ("total", _Pointer),
        ("survey", _Pointer),
        ("gauge", _Pointer),
        ("cell", _Pointer),
        ("signals", _Pointer),
        ("units", _Int32),
        ("hidden", _Int32),
    )


class DefaultKeptArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("steps", _Pointer),
        ("gauges", _Pointer),
        ("cells", _Pointer),
        ("finite", _Pointer),
    )


class CountArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("count", _Int64),
        ("numbers", _Pointer),
    )


class DefaultRunsArguments(ctypes.Structure):
    """See src/table.h."""

    _fields_ = (
        ("sizes", _Pointer),
        ("grads", _Pointer),
        ("plain", _Pointer),
        ("params", _Pointer),
        ("moments", _Pointer),
        ("cell", _Pointer),
        ("steps", _Pointer),
        ("coordinates", _Int64),
        ("threads", _Int32),
    )
