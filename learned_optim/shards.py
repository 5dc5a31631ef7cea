"""Parameters that are spread over processes (DTensor, as FSDP2 and tensor parallelism make them).

The step itself only ever sees local tensors. DTensors are recognised by what they have, not by
their class: importing it would load torch.distributed.tensor into every program.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from learned_optim.together import PLAIN

# A device mesh, and the dimensions of it that a tensor is cut along.
Cut = tuple[Any, tuple[int, ...]]


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    # Misses of hasattr are slow, and a step asks for every tensor of every parameter.
    if type(tensor) in PLAIN:
        return False
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def is_whole(tensor: Tensor) -> bool:
    """Whether `to_local` would return the tensor itself."""
    return type(tensor) in PLAIN and not tensor.is_complex()


def is_flattened(tensor: Tensor) -> bool:
    """Whether FSDP1 has joined it with others, or cut it, without regard to where tensors end."""
    return bool(getattr(tensor, "_fsdp_flattened", False))


def to_local(tensor: Tensor) -> Tensor:
    """This process's part, which shares the memory; complex numbers as pairs of reals."""
    if is_sharded(tensor):
        tensor = tensor.to_local()  # type: ignore[attr-defined]
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def local_grad(param: Tensor) -> Tensor:
    """The gradient's part that belongs to the parameter's part."""
    grad = param.grad
    if grad is None:
        raise ValueError("the parameter has no gradient")
    if is_sharded(grad) and grad.placements != param.placements:  # type: ignore[attr-defined]
        grad = grad.redistribute(param.device_mesh, param.placements)  # type: ignore[attr-defined]
    # Autograd hands out conjugates that are not written out yet.
    return to_local(grad.resolve_conj() if grad.is_complex() else grad)


def real_shape(param: Tensor) -> tuple[int, ...]:
    """Shape of the whole tensor, all shards, with the pairs of `to_local`."""
    return (*param.shape, 2) if param.is_complex() else tuple(param.shape)


class Parts(NamedTuple):
    """How the parts of a tensor that is spread over processes fit together.

    Attributes:
        mesh: of the processes.
        placements: of the parts.
        shape: of the whole tensor.
    """

    mesh: Any
    placements: tuple[Any, ...]
    shape: tuple[int, ...]

    def wrap(self, part: Tensor) -> Tensor:
        """This process's part, which may be uneven or empty, as a DTensor; shares the memory."""
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(
            part,
            self.mesh,
            self.placements,
            run_check=False,
            shape=torch.Size(self.shape),
            stride=torch.empty(self.shape, device="meta").stride(),
        )

    def join(self, part: Tensor) -> Tensor:
        """The whole tensor, in every process, of the part of each.

        Costs one all-gather of the tensor for each mesh dimension that it is cut along; every
        process must call this for the same tensors in the same order.
        """
        return self.wrap(part).full_tensor()  # type: ignore[attr-defined]

    def cut(self, whole: Tensor) -> Tensor:
        """This process's part of what every process has; no communication."""
        from torch.distributed.tensor import Replicate

        everywhere = (Replicate(),) * len(self.placements)
        here = Parts(self.mesh, everywhere, self.shape).wrap(whole)
        return here.redistribute(self.mesh, self.placements).to_local()  # type: ignore[attr-defined]


def parts_of(param: Tensor) -> Parts | None:
    """How its parts fit together; None where each process has the whole of it."""
    if cut_of(param) is None:
        return None
    return Parts(param.device_mesh, param.placements, real_shape(param))  # type: ignore[attr-defined]


def _shifted(placement: Any) -> Any:  # noqa: ANN401, the classes are not imported
    """The placement of a tensor that has one more dimension in front."""
    if not hasattr(placement, "dim"):
        return placement
    if hasattr(placement, "split_factor"):
        return type(placement)(placement.dim + 1, split_factor=placement.split_factor)
    return type(placement)(placement.dim + 1)


def wrap_rows(rows: Tensor, param: Tensor) -> Tensor:
    """Local `(R, *local shape)` as a DTensor `(R, *shape)` cut like the parameter.

    So full and sharded checkpoints treat state as they treat parameters. A plain parameter's
    rows are returned as they are.
    """
    if not is_sharded(param):
        return rows
    shape = (rows.shape[0], *real_shape(param))
    return Parts(param.device_mesh, _of_rows(param), shape).wrap(rows)  # type: ignore[attr-defined]


def _of_rows(param: Tensor) -> tuple[Any, ...]:
    """The placements of `(R, *shape)` that is cut like the parameter."""
    return tuple(_shifted(placement) for placement in param.placements)  # type: ignore[attr-defined]


def cut_alike(rows: Tensor, param: Tensor) -> Tensor:
    """DTensors `(R, *shape)`, however they are cut, cut like the parameter; others as they are."""
    if not is_sharded(param) or rows.placements == _of_rows(param):  # type: ignore[attr-defined]
        return rows
    return rows.redistribute(param.device_mesh, _of_rows(param))  # type: ignore[attr-defined]


def fits(value: Tensor, param: Tensor) -> bool:
    """Whether a DTensor is spread over the processes that the parameter is spread over."""
    return is_sharded(param) and value.device_mesh == param.device_mesh  # type: ignore[attr-defined]


@contextmanager
def gathered_anew(params: Iterable[Tensor]) -> Iterator[None]:
    """Within the block, and again after it, FSDP2's modules gather their parameters anew.

    A forward that no backward follows leaves a module whole, and what is then written to the parts
    goes unseen.
    """
    sharded = any(is_sharded(param) for param in params)
    if sharded:
        _reshard_()
    try:
        yield
    finally:
        if sharded:
            _reshard_()


def _reshard_() -> None:
    """All modules of the program: a part does not say whose it is. At worst one gathers in vain."""
    from torch.distributed._composable_state import _module_state_mapping

    for module in list(_module_state_mapping):
        # FSDP2's alone have it; where their class is, versions of torch do not agree.
        reshard = getattr(module, "reshard", None)
        if callable(reshard):
            reshard()


def cut_of(param: Tensor) -> Cut | None:
    """What the sums over its coordinates must be added up over; None for nothing."""
    if not is_sharded(param):
        return None
    placements = enumerate(param.placements)  # type: ignore[attr-defined]
    dims = tuple(index for index, placement in placements if hasattr(placement, "dim"))
    return (param.device_mesh, dims) if dims else None  # type: ignore[attr-defined]


def add_up_(rows: Iterable[tuple[Cut | None, Tensor]]) -> None:
    """Add up numbers over the shards they come from, in place.

    One collective for each distinct cut, however many tensors there are. Every process must
    call this with the same cuts in the same order, also one whose shards are all empty.
    """
    by_cut: dict[Cut, list[Tensor]] = {}
    for cut, row in rows:
        if cut is not None:
            by_cut.setdefault(cut, []).append(row)
    for (mesh, dims), group in by_cut.items():
        dtype = torch.float64 if any(r.dtype == torch.float64 for r in group) else torch.float32
        flat = torch.cat([row.to(dtype) for row in group])
        for dim in dims:
            torch.distributed.all_reduce(flat, group=mesh.get_group(dim))
        for row, total in zip(group, flat.split([row.numel() for row in group]), strict=True):
            row.copy_(total)
