# SPDX-License-Identifier: BSD-3-Clause
"""region_contrast under DistributedDataParallel: every process contrasts its rows with those of all.

    torchrun --standalone --nproc-per-node 2 examples/contrast_ddp.py

The rows are shared out over the processes. Prints the loss of each step, which is the same for any number of them: run
it with --nproc-per-node 1 to see.
"""

import gc
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastseg


def main(steps: int = 5) -> dict[str, list[float]]:
    rank, processes = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same weights and rows everywhere
    encoder = DistributedDataParallel(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)))
    optimizer = torch.optim.SGD(encoder.parameters(), 0.5)
    rows, ids = torch.randn(steps, 64, 32), torch.arange(64) % 8
    share = slice(rank * 64 // processes, (rank + 1) * 64 // processes)
    losses = []
    for step in range(steps):
        found = encoder(rows[step, share])
        # The mean over processes of this loss is that of all rows; DistributedDataParallel takes the mean of gradients.
        loss = fastseg.sharded_region_contrast(found, anchor_ids=ids[share], temperature=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        losses.append(total.item() / processes)
    return {"losses": losses}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    result = main()
    if dist.get_rank() == 0:
        print(result, flush=True)
    gc.collect()  # the module lets go of the group before it ends
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads must not outlive the interpreter
