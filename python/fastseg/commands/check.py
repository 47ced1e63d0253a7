# SPDX-License-Identifier: BSD-3-Clause
"""fastseg check: read the configuration and every voxel it names, and time a few steps, before a run does."""

from __future__ import annotations

import importlib.util
import math
import resource
import time
from typing import Any

import torch

from fastseg.commands.bench import Rates, measure_pipeline
from fastseg.commands.limits import Twice, limit, measure_twice
from fastseg.data.annotations import AnnotatedVolume, index_labels
from fastseg.data.loader import PatchLoader
from fastseg.data.resampled import ResampledVolume
from fastseg.data.volumes import Volume
from fastseg.methods.registry import method_of, prepare
from fastseg.methods.training_data import describe, suspicious
from fastseg.predict import CHUNK, Grid, Tiling
from fastseg.train.config import Config
from fastseg.train.device import autocast_dtype, device_name
from fastseg.train.inputs import open_annotated, open_target, open_validation
from fastseg.train.memory import explaining_out_of_memory
from fastseg.train.ranks import Ranks, join

# A patch that touches chunks of so many times its voxels is decoded at a fraction of the speed it could be.
_MOST_DECODED = 12


def check_run(config: Config, seconds: float, reading_seconds: float = 600.0) -> list[str]:
    """What a run of this configuration would use, a line each. InputError for what would stop it.

    seconds: for how long to time loading, learning and both; 0 leaves it. reading_seconds: for how long to read volumes
    in all.
    """
    reading = _Reading(reading_seconds)
    with (
        join(config.train.device) as ranks,
        explaining_out_of_memory(ranks, {"train.batch": config.train.batch}),
    ):
        config, volumes, task = prepare(config, ranks)
        lines = ["training"]
        for volume, index in zip(volumes, task.indexes, strict=True):
            reading.all_of(volume)
            lines += [f"  {describe(volume, index)}", f"    {_storage(volume.raw)}"]
            if volume.labels is not None:
                lines.append(f"    labels {volume.labels.name}, ids: {index.ids or 'none'}")
        held_out = open_validation(config, volumes[0].raw)
        if held_out:
            lines.append(f"validation, every {config.train.validate_every} steps")
        for volume in held_out:
            reading.all_of(volume)
            lines.append(f"  {describe(volume, index_labels(volume, config.seed))}")
        tests = [open_annotated(entry, config.data) for entry in config.data.test]
        lines.append("test" if tests else "test: none")
        for volume in tests:
            reading.all_of(volume)
            labels = f"labels {volume.labels.name}" if volume.labels else "no labels"
            lines.append(f"  {volume.raw.name}: {volume.shape} {volume.raw.dtype}, {labels}")
            lines.append(f"    {_storage(volume.raw)}")
        if tests:
            largest = max(_prediction_bytes(config, volume.raw) for volume in tests)
            lines.append(f"prediction: {_mib(largest)} beside what the network itself takes")
        lines += _targets(config, volumes, reading)
        lines += method_of(config).describe(config, volumes)
        lines += _training(config, volumes, task, ranks)
        trouble = [*reading.left, *suspicious(config, volumes, task.indexes)]
        trouble += _trouble(config, volumes, task, ranks)
        if seconds > 0:
            rates = measure_pipeline(task, config, ranks, seconds)
            lines += _measured(rates, ranks)
            if not config.train.compile:  # which would compile for minutes again
                taken = _peak(ranks)
                is_slow = rates.model * seconds < config.train.batch
                twice = None if is_slow else measure_twice(task, config, ranks, seconds)
                lines += _limits(rates, twice, taken, config.train.batch)
            if rates.loader < rates.model:
                trouble.append(
                    "loading is slower than learning: see docs/loading.md; data.threads, data.patches_per_block and "
                    "data.cache_mib are what to raise"
                )
        return [*lines, *(f"trouble: {line}" for line in trouble)]


def _targets(config: Config, volumes: list[AnnotatedVolume], reading: _Reading) -> list[str]:
    """The volumes of the domain to segment."""
    targets = open_target(config, volumes[0].raw)
    lines = ["target, of which labels decide nothing"] if targets else []
    for volume in targets:
        reading.all_of(volume)
        lines += [f"  {volume.raw.name}: {volume.shape} {volume.raw.dtype}", f"    {_storage(volume.raw)}"]
    return lines


def _training(config: Config, volumes: list[AnnotatedVolume], task: Any, ranks: Ranks) -> list[str]:
    train, loader = config.train, task.loader
    count = sum(p.numel() for p in task.network.parameters())
    precision = autocast_dtype(train.precision, ranks.device) or torch.float32
    shares = [n for n in range(1, train.batch + 1) if train.batch % n == 0]
    lines = [
        f"network: {count:,} parameters, patch {config.patch} (z, y, x), batch {train.batch}",
        f"device: {ranks.device} ({device_name(ranks.device)}), {str(precision).removeprefix('torch.')}, "
        f"{torch.get_num_threads()} threads",
        f"steps: {train.steps}, a checkpoint every {train.checkpoint_every}; may run in "
        f"{' or '.join(map(str, shares))} processes",
    ]
    if train.stop is not None and train.stop.rule == "morphology":
        lines.append(
            f"best checkpoint: by {train.stop.property} in data.target, every {train.stop.every} epochs"
        )
    elif config.data.validation:
        stop = f"; ends after {train.stop.patience} without gain" if train.stop else ""
        lines.append(f"best checkpoint: by {train.measure} in validation{stop}")
    if train.ema is not None:
        lines.append(f"weights: a moving average with decay {train.ema} is what validates and predicts")
    if train.compile:
        lines.append("torch.compile: the first step takes minutes")
    if isinstance(loader, PatchLoader):
        lines.append(
            f"patches: {loader.extent} (z, y, x) read by {loader.threads} threads, "
            f"{config.data.patches_per_block} from a block of chunks, in {_mib(loader.memory_bytes)}"
        )
    else:
        lines.append(f"patches: copied from volumes kept on the device, {_mib(loader.bytes)}")
    return lines


def _trouble(config: Config, volumes: list[AnnotatedVolume], task: Any, ranks: Ranks) -> list[str]:
    """What is known to make a run slow."""
    lines = []
    for volume in volumes if isinstance(task.loader, PatchLoader) else ():
        chunks = volume.raw.chunks
        if chunks is None:
            continue
        touched = math.prod((p - 1 + c) / p for p, c in zip(task.loader.extent, chunks, strict=True))
        if touched > _MOST_DECODED:
            lines.append(
                f"{volume.raw.name}: chunks {chunks} are large beside the patch, which touches {touched:.0f} times "
                "its voxels: smaller chunks, larger patches or a higher data.patches_per_block load faster"
            )
    if ranks.device.type == "cuda" and importlib.util.find_spec("triton") is None:
        lines.append("triton is not installed: region_contrast runs its slow reference on this GPU")
    return lines


def _measured(rates: Rates, ranks: Ranks) -> list[str]:
    what = "of the GPU" if ranks.device.type == "cuda" else "of this process"
    return [
        f"measured: the loader alone gives {rates.loader:.4g} patches/s, the model alone takes {rates.model:.4g}, "
        f"together {rates.end_to_end:.4g} ({100 * rates.efficiency:.0f} % of the model alone)",
        f"memory: {_mib(_peak(ranks))} {what}, the most it took for these steps",
    ]


def _peak(ranks: Ranks) -> int:
    """The most bytes that the device's memory held."""
    if ranks.device.type == "cuda":
        return torch.cuda.max_memory_allocated(ranks.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _limits(rates: Rates, twice: Twice | None, taken: int, batch: int) -> list[str]:
    """taken: bytes for batches of the size they have."""
    lines = [f"what limits: {limit(rates, twice, batch)}"]
    if twice is not None and twice.peak is not None:
        lines.append(
            f"memory of batches of {2 * batch}: {_mib(twice.peak)}, {_mib(max(twice.peak - taken, 0) // batch)} a patch"
        )
    return lines


def _prediction_bytes(config: Config, volume: Volume) -> int:
    """What prediction holds: accumulation, and raw data of the layer at hand and the one read ahead."""
    settings, window = config.predict, config.window
    grid = Grid(volume.shape, Tiling(window, settings.overlap, block_voxels=settings.block_voxels), CHUNK)
    classes = len(config.data.classes or [1])
    area = math.prod(
        min(t + 2 * w, max(n, w)) for t, w, n in zip(grid.tile, window[1:], volume.shape[1:], strict=True)
    )
    raw = 3 * window[0] * area * volume.channels * volume.dtype.itemsize
    return 4 * classes * min(grid.depth, volume.shape[0]) * math.prod(grid.tile) + raw


class _Reading:
    """Reads volumes block by block, for a limited time in all: integer data cannot hold NaN, but a truncated file shows
    only where it is read."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.end = seconds, time.monotonic() + seconds
        self.left: list[str] = []

    def all_of(self, volume: AnnotatedVolume) -> None:
        for start, stop in volume.raw.blocks():
            if time.monotonic() > self.end:
                self.left.append(
                    f"{volume.raw.name} was not read from (z, y, x) = {start} on: --reading {self.seconds:g} was over"
                )
                return
            volume.read_raw(start, stop)
            if volume.labels is not None:
                volume.read_target(start, stop)


def _storage(volume: Volume) -> str:
    chunks = f"chunks {volume.chunks}" if volume.chunks else "not chunked"
    size = math.prod(volume.shape) * volume.channels * volume.dtype.itemsize
    voxel = f"voxel {volume.voxel_size} um" if volume.voxel_size else "voxel size not stated"
    if isinstance(volume, ResampledVolume):
        ratio = " x ".join(f"{r:.4g}" for r in volume.ratio)
        voxel += f", {ratio} times that of the file, {volume.stored.shape} voxels"
    return f"{_mib(size)}, {chunks}, {voxel}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size >= 10 << 20 else f"{size / 2**20:,.1f} MiB"
