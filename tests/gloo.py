# SPDX-License-Identifier: BSD-3-Clause
"""A function in several processes that talk by gloo, for what is not a run of its own."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_processes(function: Callable[..., Any], count: int, folder: Path, *arguments: Any) -> list[Any]:
    """What ``function(rank, *arguments)`` returned in each of ``count`` processes, by rank."""
    mp.spawn(_run, (count, str(folder), function, arguments), nprocs=count)
    return [torch.load(folder / f"result{rank}.pt", weights_only=False) for rank in range(count)]


def _run(
    rank: int, count: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    torch.save(function(rank, *arguments), f"{folder}/result{rank}.pt")
    # A process that tears gloo down while the other still sends, or with a module that holds on to the group, is
    # now and then aborted by a thread of gloo's in the interpreter's last moments: meet, part, and leave at once.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
