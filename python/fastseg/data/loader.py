# SPDX-License-Identifier: BSD-3-Clause
"""Batches in the order of their steps: read ahead by threads, or gathered from volumes that stay on the device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import numpy as np
import torch

from fastseg.data.annotations import IGNORED, AnnotatedVolume
from fastseg.data.buffers import Batch, Buffer, BufferRing
from fastseg.data.cache import ChunkCache
from fastseg.data.intensity import Intensity
from fastseg.data.patches import PatchSampler
from fastseg.data.readers import Readers
from fastseg.data.volumes import Box
from fastseg.errors import InputError


class PatchSource:
    """What both loaders know: which patch goes where, how far around it to read, and what its volume says."""

    def __init__(
        self,
        volumes: Sequence[AnnotatedVolume],
        intensities: Sequence[Intensity],
        sampler: PatchSampler,
        *,
        places: range | None = None,
        margin: Box = (0, 0, 0),
    ) -> None:
        self.volumes, self.sampler, self.margin = list(volumes), sampler, margin
        self.places = range(sampler.batch) if places is None else places
        z, y, x = (p + 2 * m for p, m in zip(sampler.patch, margin, strict=True))
        self.extent: Box = (z, y, x)
        self.waited = 0.0
        self.shifts = np.array([i.shift for i in intensities], np.float32)
        self.scales = np.array([i.scale for i in intensities], np.float32)
        self.voxel_sizes = np.array([v.raw.voxel_size or (1.0, 1.0, 1.0) for v in volumes])

    def box(self, step: int, place: int) -> tuple[int, np.ndarray, np.ndarray]:
        """(volume, start, stop) of a patch and its margin, which may reach beyond the volume."""
        which, start = self.sampler.draw(step, place)
        low = np.subtract(start, self.margin)
        return which, low, low + self.extent

    def facts(self, which: Sequence[int], step: int) -> dict[str, object]:
        """What a batch states beside its voxels."""
        chosen = list(which)
        return {
            "shift": torch.from_numpy(self.shifts[chosen]),
            "scale": torch.from_numpy(self.scales[chosen]),
            "voxel_size": self.voxel_sizes[chosen],
            "step": step,
            "places": self.places,
        }


class PatchLoader(PatchSource):
    """Batches of patches in the order of their steps, read ahead by threads.

    Threads read patches straight into ``threads + 2`` reused buffers of a batch each, pinned with ``pin_memory``:
    at most ``threads + 1`` batches are read ahead, one is in use; more are made for a user who keeps more. Chunks are
    read and decoded outside any lock (``chunks.py``); the last ``cache_bytes`` of decoded ones, of all volumes, are
    kept for the patches that follow. So the memory is ``memory_bytes``
    whatever the size of the volumes, plus for each thread the chunks that it copies from, 8 MiB or one chunk at most,
    and 24 bytes for each chunk of an HDF5 file.

    sampler: places patches for the whole batch of all processes; ``places`` are those of this process, by default
    all: ``range(rank * n, rank * n + n)`` for n patches a process. margin: voxels to read beyond the patch on
    either side of each axis, for rotation; beyond the volume raw data are mirrored and codes 0.

    waited: seconds that the user of the batches has waited for one; near 0 if reading is fast enough.
    """

    def __init__(
        self,
        volumes: Sequence[AnnotatedVolume],
        intensities: Sequence[Intensity],
        sampler: PatchSampler,
        *,
        threads: int,
        places: range | None = None,
        margin: Box = (0, 0, 0),
        cache_bytes: int = 512 << 20,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(volumes, intensities, sampler, places=places, margin=margin)
        self.threads = threads
        self.cache = ChunkCache(cache_bytes)
        self.volumes = [volume.with_cache(self.cache) for volume in volumes]
        first, batch = volumes[0], len(self.places)
        shapes = {
            "raw": ((batch, first.raw.channels, *self.extent), common_dtype(volumes)),
            "target": ((batch, first.target_channels, *self.extent), first.target_dtype),
            "codes": ((batch, 1, *self.extent), np.dtype(np.uint8)),
        }
        self.ring = BufferRing(shapes, threads + 2, pin_memory)

    @property
    def memory_bytes(self) -> int:
        return self.ring.bytes + self.cache.most_bytes

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """The batches of steps first .. last - 1."""
        pending: deque[tuple[int, Buffer, list[Future[int]]]] = deque()
        with Readers(self.threads) as readers:
            ahead = iter(range(first, last))
            for _ in range(first, last):
                while len(pending) <= self.threads and (step := next(ahead, None)) is not None:
                    buffer = self.ring.take()
                    futures = [
                        readers.submit(self._fill, buffer, i, step, p) for i, p in enumerate(self.places)
                    ]
                    pending.append((step, buffer, futures))
                step, buffer, futures = pending.popleft()
                begin = time.perf_counter()
                which = [future.result() for future in futures]
                self.waited += time.perf_counter() - begin
                yield Batch(**buffer.lend(self.ring), **self.facts(which, step), buffer=buffer)
                del buffer

    def load(self, step: int) -> Batch:
        """The batch of one step."""
        return next(self.batches(step, step + 1))

    def _fill(self, buffer: Buffer, i: int, step: int, place: int) -> int:
        which, low, high = self.box(step, place)
        raw, target, codes = (buffer.arrays[name][i] for name in ("raw", "target", "codes"))
        read_mirrored(self.volumes[which], low, high, raw, target, codes)
        return which


def read_mirrored(
    volume: AnnotatedVolume,
    low: np.ndarray,
    high: np.ndarray,
    raw: np.ndarray,
    target: np.ndarray,
    codes: np.ndarray,
) -> None:
    """Fill the arrays with the box [low, high); beyond the volume raw is mirrored, target and codes are 0."""
    wanted, shape = (low.tolist(), high.tolist()), volume.shape
    box = [max(a, 0) for a in wanted[0]], [min(b, n) for b, n in zip(wanted[1], shape, strict=True)]
    if box == wanted:
        volume.read_raw(*box, raw)
        volume.read_target(*box, target, codes)
        return
    start, stop = map(np.array, box)
    inside = (slice(None), *(slice(a, b) for a, b in zip(start - low, stop - low, strict=True)))
    target[...] = 0
    codes[...] = IGNORED
    volume.read_raw(*box, raw[inside])
    volume.read_target(*box, target[inside], codes[inside])
    kept = raw[inside].copy()
    for axis, (a, n, size) in enumerate(zip(start - low, stop - start, raw.shape[1:], strict=True), 1):
        kept = np.take(kept, mirrored(int(a), int(n), size), axis)
    raw[...] = kept


def mirrored(before: int, inside: int, size: int) -> np.ndarray:
    """``size`` indices into ``inside`` values, of which ``before`` lie before the first: mirrored about the ends."""
    period = max(2 * (inside - 1), 1)
    index = np.abs(np.arange(-before, size - before)) % period
    return np.minimum(index, period - index) if inside > 1 else np.zeros(size, np.int64)


def common_dtype(volumes: Sequence[AnnotatedVolume]) -> np.dtype:
    """The dtype that holds the raw data of all volumes exactly; InputError if that takes more than they do."""
    dtypes = {volume.raw.dtype for volume in volumes}
    if len(dtypes) == 1:
        return dtypes.pop()
    common = np.result_type(*dtypes)
    if common.itemsize > 4:
        names = ", ".join(f"{volume.raw.name} ({volume.raw.dtype})" for volume in volumes)
        raise InputError(f"volumes must have dtypes that fit in 4 bytes together, got {names}")
    return common
