"""FSDP2: parameters, gradients and the optimizer's state are sharded over the processes.

Here two processes on the CPU; on GPUs the same with the "nccl" backend and a "cuda" mesh. The
learned rule looks at whole tensors (their norms), which is why it adds up over the shards: all
processes take the step that one would take.

    torchrun --nproc-per-node 2 examples/fsdp2.py
"""

from __future__ import annotations

import gc

import digits
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional

from learned_optim import LearnedOptimizer


def main() -> None:
    """Train a sharded network, each process on its part of every minibatch."""
    total = digits.steps(__doc__, 200)
    dist.init_process_group("gloo")
    train(total)
    gc.collect()  # what is still sharded must not outlive the processes' group
    dist.barrier()  # nobody leaves while another still needs it
    dist.destroy_process_group()


def train(total: int) -> None:
    """For so many steps; prints what came of it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    data = digits.load()
    torch.manual_seed(0)
    model = digits.network()
    mesh = init_device_mesh("cpu", (world,))
    first, last = model[0], model[2]
    for layer in (first, last, model):
        fully_shard(layer, mesh=mesh)
    # After sharding, as with every optimizer.
    optimizer = LearnedOptimizer(model.parameters(), total_steps=total)
    for x, y in digits.minibatches(data, total):
        optimizer.zero_grad()
        functional.cross_entropy(model(x[rank::world]), y[rank::world]).backward()
        optimizer.step()
    accuracy = digits.accuracy(model, data)
    state = optimizer.state[next(first.parameters())]
    if rank == 0:
        rows = next(value for key, value in state.items() if key != "step" and value.dim() == 3)
        print(f"state of the first layer: {tuple(rows.shape)}, here {tuple(rows.to_local().shape)}")
        print(f"test accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
