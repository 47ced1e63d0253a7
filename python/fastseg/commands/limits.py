# SPDX-License-Identifier: BSD-3-Clause
"""What limits the speed of a training, from a few seconds of it: loading, memory, launches, or arithmetic."""

from __future__ import annotations

import resource
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastseg.commands.bench import Rates, endless_stepper, rate
from fastseg.data.buffers import Batch
from fastseg.errors import InputError
from fastseg.train.config import Config
from fastseg.train.graph import WARM_UP
from fastseg.train.memory import explaining_out_of_memory
from fastseg.train.ranks import Ranks
from fastseg.train.task import Task

# Batches twice as large that give this much more had something other than arithmetic to pay for.
_GAIN = 1.15


@dataclass(frozen=True)
class Twice:
    """Training with batches twice as large, the model alone: patches/s, None where they do not fit, and on a GPU the
    bytes that it took at most."""

    model: float | None
    peak: int | None = None


def measure_twice(task: Task, config: Config, ranks: Ranks, seconds: float) -> Twice:
    """Train on two batches joined, over and over. The network of ``task`` is trained by it."""
    on_gpu = ranks.device.type == "cuda"
    if (
        not on_gpu and _available_bytes() < _resident_bytes()
    ):  # a CPU's memory is not refused, but the process killed
        return Twice(None)
    stepper = endless_stepper(task, config, ranks)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(ranks.device)
    with closing(task.batches(0, 2)) as batches:
        both = joined(next(batches), next(batches))
    try:
        with explaining_out_of_memory(ranks, {}):
            before = WARM_UP + 1 if on_gpu else 1  # a graph is captured by then
            model = rate(lambda: stepper.step(both, 0), before, seconds, ranks.device)
    except InputError:
        return Twice(None)
    peak = torch.cuda.max_memory_allocated(ranks.device) if on_gpu else None
    return Twice(2 * config.train.batch * model, peak)


def joined(first: Any, second: Any) -> Any:
    """Two batches, or tuples of them, as one."""
    if isinstance(first, tuple):
        return type(first)(*map(joined, first, second))
    assert isinstance(first, Batch)
    names = ("raw", "target", "codes", "shift", "scale")
    tensors = {name: torch.cat([getattr(first, name), getattr(second, name)]) for name in names}
    return Batch(
        **tensors,
        voxel_size=np.concatenate([first.voxel_size, second.voxel_size]),
        step=first.step,
        places=range(first.places.start, first.places.start + len(tensors["raw"])),
    )


def limit(rates: Rates, twice: Twice | None, batch: int) -> str:
    """What limits, and what to change. twice: None where steps take so long that nothing else can be it."""
    if rates.loader < rates.model:
        return "loading: data.threads, data.patches_per_block and data.cache_mib are what to raise"
    if twice is None:
        return (
            f"arithmetic: a step takes {batch / rates.model:.3g} s; a narrower network, a smaller data.patch or "
            "train.precision: bf16 is faster"
        )
    doubled = f"batches of {2 * batch}"
    if twice.model is None:
        return f"memory: {doubled} do not fit; smaller ones or train.precision: bf16 make room"
    gives = f"{doubled} give {twice.model:.4g} patches/s in place of {rates.model:.4g}"
    if twice.model >= _GAIN * rates.model:
        return f"launches, and what else each step costs: {gives}; raise train.batch"
    return f"arithmetic: {gives}; a narrower network or train.precision: bf16 is faster"


def _available_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
