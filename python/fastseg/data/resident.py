# SPDX-License-Identifier: BSD-3-Clause
"""Volumes that fit on the device stay there, and patches are copied out of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fastseg.data.annotations import AnnotatedVolume
from fastseg.data.buffers import Batch
from fastseg.data.intensity import Intensity
from fastseg.data.loader import PatchLoader, PatchSource, common_dtype, mirrored
from fastseg.data.patches import PatchSampler
from fastseg.data.volumes import Box
from fastseg.ops import extract_patches


class ResidentLoader(PatchSource):
    """The batches of a ``PatchLoader``, of volumes read once and kept on the device.

    Everything is kept in the dtype it is read in, with the margin around it, ``bytes`` in all. The patches of a batch
    are copied on the device by one op call for each volume that they are of, two bytes moved for each that is used;
    positions are drawn on the host, and nothing is sent but them and the shift and scale of each sample.
    """

    def __init__(
        self,
        volumes: Sequence[AnnotatedVolume],
        intensities: Sequence[Intensity],
        sampler: PatchSampler,
        device: torch.device,
        *,
        places: range | None = None,
        margin: Box = (0, 0, 0),
    ) -> None:
        super().__init__(volumes, intensities, sampler, places=places, margin=margin)
        self.device = device
        dtype = common_dtype(volumes)
        self.kept = [
            _upload(v, dtype, _padded(v.shape, sampler.patch, margin), margin, device) for v in volumes
        ]
        self.bytes = resident_bytes(volumes, sampler.patch, margin)
        # Drawing and copying need no threads.
        self.memory_bytes = 0 if device.type != "cpu" else self.bytes

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """The batches of steps first .. last - 1, on the device."""
        for step in range(first, last):
            yield self.load(step)

    def load(self, step: int) -> Batch:
        """The batch of one step."""
        # A patch with its margin begins where the patch alone would without the margin around the volume.
        which, starts = zip(*(self.sampler.draw(step, place) for place in self.places), strict=True)
        order = np.argsort(which, kind="stable")  # patches of a volume beside each other
        corners = torch.tensor(starts)[order].to(self.device, non_blocking=True)
        counts = np.bincount(which, minlength=len(self.kept)).tolist()
        of_volumes = [
            (kept, some[None])
            for kept, some in zip(self.kept, corners.split(counts), strict=True)
            if len(some)
        ]
        back = torch.from_numpy(np.argsort(order)).to(self.device, non_blocking=True)
        raw, target, codes = (
            _in_order(
                [extract_patches(kept[i][None], some, self.extent)[0] for kept, some in of_volumes], back
            )
            for i in range(3)
        )
        return Batch(raw, target, codes, **self.facts(which, step))


def resident_bytes(
    volumes: Sequence[AnnotatedVolume], patch: Box = (1, 1, 1), margin: Box = (0, 0, 0)
) -> int:
    """What ``volumes`` take on the device: raw in the file's dtype, the target, mostly a byte for each class, and a
    byte for the code."""
    per_voxel = [
        v.raw.channels * v.raw.dtype.itemsize + v.target_channels * v.target_dtype.itemsize + 1
        for v in volumes
    ]
    sizes = [math.prod(_padded(v.shape, patch, margin)) for v in volumes]
    return sum(size * n for size, n in zip(sizes, per_voxel, strict=True))


def _padded(shape: Box, patch: Box, margin: Box) -> Box:
    """The size at which no patch of a volume, with its margin, reaches beyond it."""
    z, y, x = (max(n, p) + 2 * m for n, p, m in zip(shape, patch, margin, strict=True))
    return (z, y, x)


def _upload(
    volume: AnnotatedVolume, dtype: np.dtype, padded: Box, margin: Box, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """raw, target and codes on ``device``, read block by block so that the host holds one block at a time; around them
    raw is mirrored, target and codes are 0."""
    kept: list[Tensor] = []
    for start, stop in volume.raw.blocks():
        raw = volume.read_raw(start, stop).astype(dtype, copy=False)
        block = [torch.from_numpy(array) for array in (raw, *volume.read_target(start, stop))]
        if not kept:
            kept = [torch.zeros((len(b), *padded), dtype=b.dtype, device=device) for b in block]
        box = (slice(None), *(slice(m + a, m + b) for m, a, b in zip(margin, start, stop, strict=True)))
        for whole, part in zip(kept, block, strict=True):
            whole[box] = part.to(device)
    for axis, (before, inside, size) in enumerate(zip(margin, volume.shape, padded, strict=True), 1):
        index = torch.from_numpy(mirrored(before, inside, size) + before).to(device)
        for low, high in ((0, before), (before + inside, size)):
            kept[0].narrow(axis, low, high - low).copy_(kept[0].index_select(axis, index[low:high]))
    return kept[0], kept[1], kept[2]


def _in_order(parts: Sequence[Tensor], order: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts).index_select(0, order)


def stays_on_device(
    volumes: Sequence[AnnotatedVolume],
    device: torch.device,
    resident: bool | str,
    most_bytes: int,
    patch: Box,
    margin: Box,
) -> bool:
    """ "auto": if they take ``most_bytes`` at most, and no more than half of the GPU memory that is free."""
    if resident != "auto":
        return bool(resident)
    if device.type == "cuda":
        most_bytes = min(most_bytes, torch.cuda.mem_get_info(device)[0] // 2)
    return resident_bytes(volumes, patch, margin) <= most_bytes


def choose_loader(
    volumes: Sequence[AnnotatedVolume],
    intensities: Sequence[Intensity],
    sampler: PatchSampler,
    device: torch.device,
    *,
    resident: bool | str,
    most_bytes: int,
    cache_bytes: int,
    threads: int,
    places: range | None = None,
    margin: Box = (0, 0, 0),
) -> PatchLoader | ResidentLoader:
    """The loader that suits the volumes. Both give the same batches: ``resident`` changes the speed, not the run."""
    if stays_on_device(volumes, device, resident, most_bytes, sampler.patch, margin):
        return ResidentLoader(volumes, intensities, sampler, device, places=places, margin=margin)
    return PatchLoader(
        volumes,
        intensities,
        sampler,
        threads=threads,
        places=places,
        margin=margin,
        cache_bytes=cache_bytes,
        pin_memory=device.type == "cuda",
    )
