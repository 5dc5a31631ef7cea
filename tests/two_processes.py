"""What two processes do for test_optimizer_distributed.py; here, as spawned processes import it.

Every scenario takes `(rank, folder)` and returns plain tensors and numbers for the test to judge.
"""

from __future__ import annotations

import copy
import datetime
import itertools
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from small_training import (
    ADAM,
    LSTM,
    awake,
    data,
    fit,
    loaded,
    loss_of,
    make,
    mlp,
    parameters,
    randn,
    same_tree,
    snapshot,
    through_file,
)
from test_eager_backend import Normalised
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as api
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from learned_optim.rules import Default

WORLD = 2
# Two shards of each: equal; unequal; and with one row, one of them empty.
SIZES = {"even": (6, 8, 4, 2), "uneven": (6, 5, 3, 1)}
NORMALISED = loaded(Normalised(), name="normalised")
# With a stage that needs whole matrices.
DEFAULT = awake(Default(hidden=2, controller=2), name="default")
RULES = {"adam": ADAM, "lstm": LSTM, "normalised": NORMALISED, "default": DEFAULT}


def optimizer_for(params: Any, rule: str, **options: Any) -> Any:
    return make(params, RULES[rule], total_steps=1000, **options)


def own_part(batches: list[tuple[Tensor, Tensor]], rank: int) -> list[tuple[Tensor, Tensor]]:
    return [(x[rank::WORLD], y[rank::WORLD]) for x, y in batches]


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (WORLD,))


def sharded(sizes: tuple[int, ...], seed: int = 0) -> nn.Module:
    model, over = mlp(seed, sizes=sizes), mesh()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=over)
    fully_shard(model, mesh=over)
    return model


def whole(tensors: Any) -> list[Tensor]:
    return [t.full_tensor().detach().clone() for t in tensors]


def ddp(rank: int, folder: Path, *, zero: bool) -> Any:
    model = DistributedDataParallel(mlp())
    if zero:
        # Here: importing it warns.
        from torch.distributed.optim import ZeroRedundancyOptimizer

        kind, params = type(optimizer_for(parameters(), "lstm")), model.parameters()
        optimizer: Any = ZeroRedundancyOptimizer(
            params, optimizer_class=kind, rule=LSTM, weight_decay=1.0
        )
    else:
        optimizer = optimizer_for(model.parameters(), "lstm", weight_decay=1.0)
    fit(model, optimizer, own_part(data(5), rank))
    if zero:
        optimizer.consolidate_state_dict(0)
        if rank == 0:
            through_file(optimizer.state_dict())
    return snapshot(model)


def train(rank: int, folder: Path, *, rule: str, sizes: str) -> Any:
    model = sharded(SIZES[sizes])
    optimizer = optimizer_for(model.parameters(), rule)
    fit(model, optimizer, own_part(data(5, out=SIZES[sizes][-1]), rank))
    layouts = []
    for param in model.parameters():
        for key, value in optimizer.state[param].items():
            if isinstance(value, DTensor):
                assert value.placements == (Shard(1),)
                assert value.to_local().shape[1:] == param.to_local().shape  # type: ignore[operator]
                layouts.append((key, tuple(value.shape), tuple(param.shape)))
    with optimizer.averaged():
        means = whole(model.parameters())
    return whole(model.parameters()), layouts, means


def broken_gradient(rank: int, folder: Path) -> Any:
    """NaN in one process's shard of the first weight, the other's is clean."""
    model = sharded(SIZES["even"])
    params = list(model.parameters())
    optimizer = optimizer_for(params, "lstm")
    fit(model, optimizer, own_part(data(1), rank))
    before, state = whole(params), copy.deepcopy(optimizer.state_dict()["state"][0])
    loss_of(model, own_part(data(1, seed=3), rank)[0]).backward()
    if rank == 1:
        params[0].grad.to_local()[0, 0] = float("nan")  # type: ignore[union-attr]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    now = optimizer.state_dict()["state"][0]
    kept = all(same_tree(local(state[key]), local(now[key])) for key in state)
    moved = [not torch.equal(a, b) for a, b in zip(before, whole(params), strict=True)]
    steps = [int(optimizer.state[p]["step"]) for p in params]
    return kept, moved, steps, sum("NaN" in str(w.message) for w in caught)


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def collectives(rank: int, folder: Path) -> Any:
    """How many a step needs, for two groups of many parameters and a rule with sums."""
    model = sharded(SIZES["uneven"])
    params = list(model.parameters())
    optimizer = optimizer_for([{"params": params[:2]}, {"params": params[2:]}], "normalised")
    loss_of(model, own_part(data(1, out=1), rank)[0]).backward()
    with mock.patch("torch.distributed.all_reduce", wraps=dist.all_reduce) as watched:
        optimizer.step()
    return watched.call_count


def other_placements(rank: int, folder: Path, *, rule: str) -> Any:
    """Columns cut, rows cut, replicated; the gradient of the first comes replicated."""
    over, results = mesh(), []
    for placement, grad_placement in (
        (Shard(1), Replicate()),
        (Shard(0), Shard(0)),
        (Replicate(), Replicate()),
    ):
        param = nn.Parameter(distribute_tensor(randn((5, 3), 0), over, [placement]))
        optimizer = optimizer_for([param], rule)
        for k in range(3):
            param.grad = distribute_tensor(randn((5, 3), 10 + k), over, [grad_placement])
            version = param._version
            optimizer.step()
            assert param._version > version
        results += whole([param])
    return results


def full_state(rank: int, folder: Path, *, rule: str, sizes: str) -> Any:
    """A full checkpoint goes back into shards, and out to be continued in one process."""
    batches = own_part(data(8, out=SIZES[sizes][-1]), rank)
    model = sharded(SIZES[sizes])
    optimizer = optimizer_for(model.parameters(), rule)
    fit(model, optimizer, batches[:4])
    options = api.StateDictOptions(full_state_dict=True, cpu_offload=True)
    saved = copy.deepcopy(api.get_state_dict(model, optimizer, options=options))
    fit(model, optimizer, batches[4:])
    again = sharded(SIZES[sizes], seed=5)
    other = optimizer_for(again.parameters(), rule)
    options = api.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    kept = copy.deepcopy(saved)
    api.set_model_state_dict(again, saved[0], options=options)
    api.set_optimizer_state_dict(again, other, saved[1], options=options)
    fit(again, other, batches[4:])
    return whole(model.parameters()), whole(again.parameters()), kept


def sharded_state(rank: int, folder: Path, *, rule: str, sizes: str) -> Any:
    """A sharded checkpoint on disk."""
    batches = own_part(data(8, out=SIZES[sizes][-1]), rank)
    model = sharded(SIZES[sizes])
    optimizer = optimizer_for(model.parameters(), rule)
    fit(model, optimizer, batches[:4])
    where = folder / f"{rule}-{sizes}"
    parts = api.get_state_dict(model, optimizer)
    save({"model": parts[0], "optimizer": parts[1]}, checkpoint_id=where)
    fit(model, optimizer, batches[4:])
    again = sharded(SIZES[sizes], seed=5)
    other = optimizer_for(again.parameters(), rule)
    parts = api.get_state_dict(again, other)
    content: dict[str, Any] = {"model": parts[0], "optimizer": parts[1]}
    load(content, checkpoint_id=where)
    api.set_state_dict(
        again,
        other,
        model_state_dict=content["model"],
        optim_state_dict=content["optimizer"],
    )
    fit(again, other, batches[4:])
    return whole(model.parameters()), whole(again.parameters())


def plain_state(rank: int, folder: Path) -> Any:
    """Plain tensors of full shape do not fit into a sharded optimizer: the message."""
    single = mlp()
    optimizer = optimizer_for(single.parameters(), "lstm")
    fit(single, optimizer, data(1))
    target = optimizer_for(sharded(SIZES["even"]).parameters(), "lstm")
    try:
        target.load_state_dict(optimizer.state_dict())
    except ValueError as error:
        return str(error)
    return "accepted"


def other_cut(rank: int, folder: Path, *, rule: str) -> Any:
    """A checkpoint goes on with the parameter cut another way: where both runs end."""
    ends = []
    cuts = (Shard(0), Shard(1), Replicate())
    for shape in ((5, 3), (40, 30)):
        for before, after in itertools.permutations(cuts, 2):
            param = nn.Parameter(distribute_tensor(randn(shape, 0), mesh(), [before]))
            optimizer = optimizer_for([param], rule)
            _take_steps(param, optimizer, range(3))
            [here] = whole([param])
            other = nn.Parameter(distribute_tensor(here, mesh(), [after]))
            resumed = optimizer_for([other], rule)
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            for ours, theirs in ((param, optimizer), (other, resumed)):
                _take_steps(ours, theirs, range(3, 5))
            ends.append(whole([param, other]))
    return ends


def _take_steps(param: Any, optimizer: Any, steps: range) -> None:
    for k in steps:
        grad = distribute_tensor(randn(param.shape, 10 + k), mesh(), param.placements)
        param.grad = grad
        optimizer.step()


def other_mesh(rank: int, folder: Path) -> Any:
    """State on processes in another order does not fit: the message."""
    params = [
        nn.Parameter(distribute_tensor(randn((4, 3), 0), over, [Shard(0)]))
        for over in (mesh(), DeviceMesh("cpu", [1, 0]))
    ]
    first, second = (optimizer_for([param], "default") for param in params)
    _take_steps(params[0], first, range(1))
    try:
        second.load_state_dict(first.state_dict())
    except ValueError as error:
        return str(error)
    return "accepted"


def looked_at(rank: int, folder: Path, *, look: bool) -> Any:
    """Evaluations between steps, also at the mean, that no backward follows."""
    model, seen = sharded(SIZES["even"]), []
    optimizer = optimizer_for(model.parameters(), "default")
    for x, y in own_part(data(4), rank):
        fit(model, optimizer, [(x, y)])
        if look:
            with torch.no_grad():
                seen.append(model(x))
                with optimizer.averaged():
                    seen.append(model(x))
                seen.append(model(x))
    return whole(model.parameters()), seen


SCENARIOS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "ddp": (ddp, {"zero": False}),
    "zero": (ddp, {"zero": True}),
    "broken gradient": (broken_gradient, {}),
    "collectives": (collectives, {}),
    "other placements normalised": (other_placements, {"rule": "normalised"}),
    "other placements default": (other_placements, {"rule": "default"}),
    "plain state": (plain_state, {}),
    "other mesh": (other_mesh, {}),
    "looked at": (looked_at, {"look": True}),
    "not looked at": (looked_at, {"look": False}),
    "other cut lstm": (other_cut, {"rule": "lstm"}),
    "other cut default": (other_cut, {"rule": "default"}),
}
for _sizes in SIZES:
    SCENARIOS[f"train default {_sizes}"] = (train, {"rule": "default", "sizes": _sizes})
    for _rule in ("lstm", "normalised", "default"):
        _case = {"rule": _rule, "sizes": _sizes}
        SCENARIOS[f"train {_rule} {_sizes}"] = (train, _case)
        SCENARIOS[f"full {_rule} {_sizes}"] = (full_state, _case)
        SCENARIOS[f"sharded {_rule} {_sizes}"] = (sharded_state, _case)


def worker(rank: int, folder: str) -> None:
    """Run all scenarios and leave `{name: result or traceback}` in a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(seconds=60),
    )
    results = {}
    for name, (scenario, arguments) in SCENARIOS.items():
        try:
            results[name] = scenario(rank, Path(folder), **arguments)
        except Exception:
            results[name] = f"FAILED\n{traceback.format_exc()}"
    torch.save(results, f"{folder}/results{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
