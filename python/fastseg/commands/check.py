# SPDX-License-Identifier: BSD-3-Clause
"""fastseg check: read the configuration and every voxel it names, before a run does."""

from __future__ import annotations

import math
import platform

import torch

from fastseg.data.annotations import AnnotatedVolume, index_labels
from fastseg.data.patches import PatchSampler, Sampling
from fastseg.data.volumes import Volume
from fastseg.methods.supervised import build_network, describe
from fastseg.train.config import Config
from fastseg.train.device import autocast_dtype, choose_device
from fastseg.train.inputs import open_annotated, open_training, open_validation


def check_run(config: Config) -> list[str]:
    """What a run of this configuration would use, a line each. InputError for what would stop it."""
    device = choose_device(config.train.device)
    precision = autocast_dtype(config.train.precision, device)
    volumes = open_training(config)
    indexes = [index_labels(volume, config.seed) for volume in volumes]
    sampling = Sampling(**config.data.sampling.model_dump())
    PatchSampler(volumes, indexes, config.patch, sampling, config.seed)
    lines = ["training"]
    for volume, index in zip(volumes, indexes, strict=True):
        _read_all(volume)
        lines += [f"  {describe(volume, index)}", f"  {_storage(volume.raw)}"]
    held_out = open_validation(config, volumes[0].raw)
    if held_out:
        lines.append(f"validation, every {config.train.validate_every} steps")
    for volume in held_out:
        _read_all(volume)
        lines.append(f"  {describe(volume, index_labels(volume, config.seed))}")
    tests = [open_annotated(entry, config.data) for entry in config.data.test]
    lines.append("test" if tests else "test: none")
    for volume in tests:
        _read_all(volume)
        labels = f"labels {volume.labels.name}" if volume.labels else "no labels"
        lines += [
            f"  {volume.raw.name}: {volume.shape} {volume.raw.dtype}, {labels}",
            f"  {_storage(volume.raw)}",
        ]
    network = build_network(config, volumes[0].raw.channels)
    count = sum(p.numel() for p in network.parameters())
    lines += [
        f"network: {count:,} parameters, patch {config.patch} (z, y, x), batch {config.train.batch}",
        f"device: {device} ({_device_name(device)}), {precision or torch.float32}".replace("torch.", "")
        + f", {torch.get_num_threads()} threads",
        *_training(config),
    ]
    return lines


def _training(config: Config) -> list[str]:
    train, shares = config.train, [n for n in range(1, config.train.batch + 1) if config.train.batch % n == 0]
    lines = [
        f"steps: {train.steps}, a checkpoint every {train.checkpoint_every}; may run in "
        f"{' or '.join(map(str, shares))} processes"
    ]
    if config.data.validation:
        stop = f"; ends after {train.stop.patience} without gain" if train.stop else ""
        lines.append(f"best checkpoint: by {train.measure} in validation{stop}")
    if train.ema is not None:
        lines.append(f"weights: a moving average with decay {train.ema} is what validates and predicts")
    if train.compile:
        lines.append("torch.compile: the first step takes minutes")
    return lines


def _read_all(volume: AnnotatedVolume) -> None:
    # Integer data cannot hold NaN, but a truncated file shows only where it is read.
    for start, stop in volume.raw.blocks():
        volume.read_raw(start, stop)
        if volume.labels is not None:
            volume.read_target(start, stop)


def _storage(volume: Volume) -> str:
    chunks = f"chunks {volume.chunks}" if volume.chunks else "not chunked"
    size = math.prod(volume.shape) * volume.channels * volume.dtype.itemsize / 2**20
    voxel = f"voxel {volume.voxel_size} um" if volume.voxel_size else "voxel size not stated"
    return f"  {size:,.1f} MiB, {chunks}, {voxel}"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
