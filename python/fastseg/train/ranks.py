# SPDX-License-Identifier: BSD-3-Clause
"""The processes of a run: found in the environment, joined, and ended together when one of them fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastseg.errors import InputError, Interrupted
from fastseg.train.alarm import Alarm
from fastseg.train.device import choose_device

# Far more than one process may be behind the others, as one that validates a larger share.
_PATIENCE = timedelta(hours=2)

# torchrun sets these; a SLURM script can (docs/clusters.md).
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """This process's ``rank`` of ``count``, and its device. Every method but ``places`` is a meeting of all:
    each process must call it, in the same order. Numbers travel over the CPU, so a process that waits in a
    meeting leaves no operation of a GPU hanging that could time out."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def places(self, batch: int, key: str = "train.batch") -> range:
        """This process's places in a global batch: rank r of w holds r * batch / w .. (r + 1) * batch / w - 1. key:
        what states the batch, for the message."""
        if batch % self.count:
            raise InputError(
                f"{key} is shared out evenly: it must be a multiple of the number of processes, "
                f"{self.count}, got {batch}"
            )
        share = batch // self.count
        return range(self.rank * share, (self.rank + 1) * share)

    def meet(self) -> None:
        """Return when all processes have called it."""
        self.sum(torch.zeros(1))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some process."""
        return bool(self.sum(torch.tensor(int(flag))))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes of a tensor on the CPU."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """What every process gave, by rank."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """What the first process gave."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]


@contextlib.contextmanager
def join(device: str = "auto") -> Iterator[Ranks]:
    """The processes that RANK, WORLD_SIZE and LOCAL_RANK speak of, as torchrun sets them; one without them.

    device: as in train.device; with several processes "auto" and "cuda" give each the GPU of its LOCAL_RANK.
    They talk by NCCL between GPUs and by gloo between CPUs. With several, an error in the block is not raised
    further: it ends the processes everywhere, each with its message, with exit code 2 for an InputError and 1 for
    others.
    """
    count = _number("WORLD_SIZE") if "WORLD_SIZE" in os.environ else 1
    if count == 1:
        yield Ranks(device=choose_device(device))
        return
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise InputError(
            f"WORLD_SIZE={count} is set, but {', '.join(missing)} not: start with torchrun, or see docs/clusters.md"
        )
    rank = _number("RANK")
    own = _own_device(device, _number("LOCAL_RANK"))
    if own.type == "cuda":
        torch.cuda.set_device(own)
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, count))
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(
            f"the processes of the run cannot meet at MASTER_ADDR:MASTER_PORT, {where}: {str(error).splitlines()[0]}"
        ) from error
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo",
        store=dist.PrefixStore("fastseg", store),
        rank=rank,
        world_size=count,
        timeout=_PATIENCE,
    )
    alarm, ranks = Alarm(store, rank, count), Ranks(rank, count, own)
    stopped: Interrupted | None = None
    try:
        try:
            yield ranks
        except Interrupted as reason:
            stopped = reason  # all of them at the same step
        # A launcher that sees one process end may kill the rest, while the first still writes the checkpoint.
        ranks.any(False)
    except Exception as error:
        alarm.ring(alarm.meaning_of(error))
    alarm.part()
    dist.destroy_process_group()
    if stopped is not None:
        raise stopped


def _own_device(name: str, local: int) -> torch.device:
    device = choose_device(name)
    if device.type != "cuda":
        return device
    if device.index is not None:
        raise InputError(
            f"train.device {name} is one GPU for several processes: use cuda, and each takes its own"
        )
    # A scheduler may show each process its own GPU alone.
    visible = torch.cuda.device_count()
    if visible > 1 and local >= visible:
        raise InputError(
            f"process {local} of this machine has no GPU: {visible} are visible; start one process per GPU"
        )
    return torch.device("cuda", local if visible > 1 else 0)


def _number(name: str) -> int:
    text = os.environ[name]
    if not text.isdigit():
        raise InputError(f"the environment variable {name} must be a number, got {text!r}")
    return int(text)
