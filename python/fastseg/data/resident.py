# SPDX-License-Identifier: BSD-3-Clause
"""Volumes that fit on the device stay there, and patches are copied out of them."""

from __future__ import annotations

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


class ResidentLoader(PatchSource):
    """The batches of a ``PatchLoader``, of volumes read once and kept on the device.

    Everything is kept in the dtype it is read in: ``resident_bytes`` in all. Each sample is a slice copied on the
    device, two bytes moved for each that is used; positions are drawn on the host, and nothing is sent but the shift
    and scale of each sample. The op ``extract_patches``, which takes all corners of a batch at once, would save
    launches on a GPU: it can replace ``_gather``.
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
        self.kept = [_upload(volume, dtype, device) for volume in volumes]
        # Drawing and copying need no threads.
        self.memory_bytes = 0 if device.type != "cpu" else resident_bytes(volumes)

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """The batches of steps first .. last - 1, on the device."""
        for step in range(first, last):
            yield self.load(step)

    def load(self, step: int) -> Batch:
        """The batch of one step."""
        boxes = [self.box(step, place) for place in self.places]
        tensors = [
            torch.stack([_gather(self.kept[which][i], low, high) for which, low, high in boxes])
            for i in range(3)
        ]
        raw, target, codes = tensors
        for i, (which, low, high) in enumerate(boxes):
            _clear_outside((target[i], codes[i]), low, high, self.volumes[which].shape)
        return Batch(raw, target, codes, **self.facts([which for which, _, _ in boxes], step))


def resident_bytes(volumes: Sequence[AnnotatedVolume]) -> int:
    """What ``volumes`` take on the device: raw in the file's dtype, the target, mostly a byte for each class, and a
    byte for the code."""
    per_voxel = [
        v.raw.channels * v.raw.dtype.itemsize + v.target_channels * v.target_dtype.itemsize + 1
        for v in volumes
    ]
    return sum(int(np.prod(v.shape)) * n for v, n in zip(volumes, per_voxel, strict=True))


def _upload(volume: AnnotatedVolume, dtype: np.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """raw, target and codes on ``device``, read block by block so that the host holds one block at a time."""
    kept: list[Tensor] = []
    for start, stop in volume.raw.blocks():
        raw = volume.read_raw(start, stop).astype(dtype, copy=False)
        block = [torch.from_numpy(array) for array in (raw, *volume.read_target(start, stop))]
        if not kept:
            kept = [torch.empty((len(b), *volume.shape), dtype=b.dtype, device=device) for b in block]
        box = (slice(None), *(slice(a, b) for a, b in zip(start, stop, strict=True)))
        for whole, part in zip(kept, block, strict=True):
            whole[box] = part.to(device)
    return kept[0], kept[1], kept[2]


def _gather(volume: Tensor, low: np.ndarray, high: np.ndarray) -> Tensor:
    """The box [low, high) of (C, z, y, x), mirrored beyond its ends."""
    shape = np.asarray(volume.shape[1:])
    start, stop = np.maximum(low, 0), np.minimum(high, shape)
    box = volume[(slice(None), *(slice(a, b) for a, b in zip(start, stop, strict=True)))]
    for axis in np.flatnonzero((start > low) | (stop < high)):
        index = mirrored(
            int(start[axis] - low[axis]), int(stop[axis] - start[axis]), int(high[axis] - low[axis])
        )
        box = box.index_select(int(axis) + 1, torch.from_numpy(index).to(volume.device))
    return box


def _clear_outside(tensors: Sequence[Tensor], low: np.ndarray, high: np.ndarray, shape: Box) -> None:
    """Zeros where the box [low, high) lies beyond the volume."""
    for axis, (a, b, n) in enumerate(zip(low, high, shape, strict=True), 1):
        for tensor in tensors:
            if a < 0:
                tensor.narrow(axis, 0, int(-a)).zero_()
            if b > n:
                tensor.narrow(axis, int(n - a), int(b - n)).zero_()


def stays_on_device(
    volumes: Sequence[AnnotatedVolume], device: torch.device, resident: bool | str, most_bytes: int
) -> bool:
    """ "auto": if they take ``most_bytes`` at most, and no more than half of the GPU memory that is free."""
    if resident != "auto":
        return bool(resident)
    if device.type == "cuda":
        most_bytes = min(most_bytes, torch.cuda.mem_get_info(device)[0] // 2)
    return resident_bytes(volumes) <= most_bytes


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
    if stays_on_device(volumes, device, resident, most_bytes):
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
