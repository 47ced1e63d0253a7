# SPDX-License-Identifier: BSD-3-Clause
"""fastseg check: read the configuration and every voxel it names, before a run does."""

from __future__ import annotations

import math

import torch

from fastseg.data.annotations import AnnotatedVolume, index_labels
from fastseg.data.loader import PatchLoader
from fastseg.data.resident import resident_bytes, stays_on_device
from fastseg.data.volumes import Volume
from fastseg.methods.supervised import build_loader, build_network, describe
from fastseg.train.config import Config
from fastseg.train.device import autocast_dtype, choose_device, device_name
from fastseg.train.inputs import build_sampler, open_annotated, open_training

# A patch that touches chunks of so many times its voxels is decoded at a fraction of the speed it could be.
_MOST_DECODED = 12


def check_run(config: Config) -> list[str]:
    """What a run of this configuration would use, a line each. InputError for what would stop it."""
    device = choose_device(config.train.device)
    precision = autocast_dtype(config.train.precision, device)
    volumes = open_training(config)
    indexes = [index_labels(volume, config.seed) for volume in volumes]
    build_sampler(config, volumes, indexes)
    resident = stays_on_device(volumes, device, config.data.resident, config.data.resident_mib << 20)
    loader = None if resident else build_loader(config, volumes, indexes, device)
    lines = ["training"]
    for volume, index in zip(volumes, indexes, strict=True):
        _read_all(volume)
        lines += [f"  {describe(volume, index)}", f"  {_storage(volume.raw)}"]
    lines += _loading(config, volumes, loader)
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


def _loading(config: Config, volumes: list[AnnotatedVolume], loader: PatchLoader | None) -> list[str]:
    """How patches come, what memory that takes, and what makes it slow."""
    if loader is None:
        return [
            f"patches: copied from volumes kept on the device, {resident_bytes(volumes) / 2**20:,.0f} MiB"
        ]
    lines = [
        f"patches: {loader.extent} (z, y, x) read by {loader.threads} threads, {config.data.patches_per_block} from "
        f"a block of chunks, in {loader.memory_bytes / 2**20:,.0f} MiB"
    ]
    for volume in volumes:
        chunks = volume.raw.chunks
        if chunks is None:
            continue
        touched = math.prod((p - 1 + c) / p for p, c in zip(loader.extent, chunks, strict=True))
        if touched > _MOST_DECODED:
            lines.append(
                f"  {volume.raw.name}: chunks {chunks} are large beside the patch, which touches {touched:.0f} times "
                "its voxels: smaller chunks, larger patches or a higher data.patches_per_block load faster"
            )
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
