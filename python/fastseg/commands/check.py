# SPDX-License-Identifier: BSD-3-Clause
"""fastseg check: read the configuration and every voxel it names, before a run does."""

from __future__ import annotations

import math

import torch

from fastseg.data.annotations import AnnotatedVolume, index_labels
from fastseg.data.patches import PatchSampler, Sampling
from fastseg.data.volumes import Volume
from fastseg.methods.supervised import build_network, describe
from fastseg.train.config import Config
from fastseg.train.device import autocast_dtype, choose_device, device_name
from fastseg.train.inputs import open_annotated, open_training


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
        f"device: {device} ({device_name(device)}), {'bfloat16' if precision else 'float32'}, "
        f"{torch.get_num_threads()} threads",
    ]
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
