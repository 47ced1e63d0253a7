# SPDX-License-Identifier: BSD-3-Clause
"""Random training patches: positions drawn by step number, read by threads, delivered in order.

Positions depend on the seed, the step and the place in the batch alone. So the stream is the same for any
number of threads, and a resumed run needs nothing but its step to go on with the same patches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastseg.data.annotations import AnnotatedVolume, LabelIndex
from fastseg.data.intensity import Intensity
from fastseg.data.volumes import Box
from fastseg.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """Shares of patches placed anywhere, around a labelled voxel, around a labelled foreground voxel."""

    uniform: float = 0.1
    labelled: float = 0.45
    foreground: float = 0.45


@dataclass
class Batch:
    """raw (B, C, z, y, x) in the file's dtype, target (B, K, ...) and codes (B, 1, ...) uint8, shift and scale
    (B, C) of each sample's volume."""

    raw: Tensor
    target: Tensor
    codes: Tensor
    shift: Tensor
    scale: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))

    def pin_memory(self) -> Batch:
        return Batch(*(tensor.pin_memory() for tensor in vars(self).values()))


class PatchSampler:
    """Draw (volume, start) of a patch for a step and a place in the batch."""

    def __init__(
        self,
        volumes: Sequence[AnnotatedVolume],
        indexes: Sequence[LabelIndex],
        patch: Box,
        sampling: Sampling,
        seed: int,
    ) -> None:
        for volume in volumes:
            if any(p > n for p, n in zip(patch, volume.shape, strict=True)):
                raise InputError(
                    f"patch {patch} (z, y, x) is larger than the volume {volume.raw.name}, {volume.shape}"
                )
        if not any(index.labelled_voxels + index.pseudo_voxels for index in indexes):
            names = ", ".join(volume.raw.name for volume in volumes)
            raise InputError(f"no annotated voxel in {names}: check labels, mask, annotated and region")
        self.shapes = [volume.shape for volume in volumes]
        self.patch, self.seed = patch, seed
        # A way of drawing is a share, the chance of each volume, and candidate positions (None: anywhere).
        ways = [
            (sampling.uniform, [float(np.prod(v.shape)) for v in volumes], None),
            (
                sampling.labelled,
                [float(i.labelled_voxels + i.pseudo_voxels) for i in indexes],
                [i.labelled for i in indexes],
            ),
            (
                sampling.foreground,
                [float(i.foreground_voxels) for i in indexes],
                [i.foreground for i in indexes],
            ),
        ]
        self.ways = [
            (share, weights, found) for share, weights, found in ways if share > 0 and sum(weights) > 0
        ]
        if not self.ways:
            raise InputError("sampling draws around foreground alone, but no labelled voxel is foreground")

    def draw(self, step: int, place: int) -> tuple[int, Box]:
        rng = np.random.default_rng((self.seed, step, place))
        _, weights, candidates = self.ways[_choose(rng, [way[0] for way in self.ways])]
        volume = _choose(rng, weights)
        limit = np.subtract(self.shapes[volume], self.patch)
        if candidates is None:
            start = rng.integers(limit + 1)
        else:
            centre = candidates[volume][rng.integers(len(candidates[volume]))]
            start = np.clip(centre - rng.integers(self.patch), 0, limit)
        return volume, (int(start[0]), int(start[1]), int(start[2]))


class PatchLoader:
    """Batches of patches in the order of their steps, read ahead by threads.

    Memory is bounded by ``threads + 1`` batches beside the one in use. Reading releases Python's lock in
    decompression of TIFF and image files; HDF5 reads are serialised by h5py.
    """

    def __init__(
        self,
        volumes: Sequence[AnnotatedVolume],
        intensities: Sequence[Intensity],
        sampler: PatchSampler,
        *,
        batch: int,
        threads: int,
        pin_memory: bool = False,
        places: range | None = None,
    ) -> None:
        """places: those of the batch to load, one process's share of it; all by default."""
        self.places = range(batch) if places is None else places
        self.volumes, self.intensities, self.sampler = volumes, intensities, sampler
        self.threads, self.pin_memory = threads, pin_memory

    def load(self, step: int) -> Batch:
        """The batch of one step."""
        raws, targets, codes, shifts, scales = [], [], [], [], []
        for place in self.places:
            which, start = self.sampler.draw(step, place)
            stop = tuple(s + p for s, p in zip(start, self.sampler.patch, strict=True))
            raws.append(self.volumes[which].read_raw(start, stop))
            target, code = self.volumes[which].read_target(start, stop)
            targets.append(target)
            codes.append(code)
            shifts.append(self.intensities[which].shift)
            scales.append(self.intensities[which].scale)
        batch = Batch(
            torch.from_numpy(np.stack(raws)),
            torch.from_numpy(np.stack(targets)),
            torch.from_numpy(np.stack(codes)),
            torch.tensor(shifts, dtype=torch.float32),
            torch.tensor(scales, dtype=torch.float32),
        )
        return batch.pin_memory() if self.pin_memory else batch

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """The batches of steps first .. last - 1."""
        pending: deque[Future[Batch]] = deque()
        ahead = iter(range(first, last))
        with ThreadPoolExecutor(self.threads, thread_name_prefix="fastseg-read") as pool:
            try:
                for step in ahead:
                    pending.append(pool.submit(self.load, step))
                    if len(pending) > self.threads:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()


def _choose(rng: np.random.Generator, weights: Sequence[float]) -> int:
    edges = np.cumsum(weights)
    return int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
