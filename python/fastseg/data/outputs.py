# SPDX-License-Identifier: BSD-3-Clause
"""Output volumes, HDF5 or Zarr: written block by block, there under their name only when they are whole.

Everything is collected in the folder ``<path>.partial`` and renamed at the end. A block counts as finished when
its data and then its line in the manifest have reached the disk, so that a run that was killed at any moment
goes on from the finished blocks to the result it would have had.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from fastseg.data.outputs_hdf5 import Hdf5Store
from fastseg.data.outputs_journal import Journal
from fastseg.data.outputs_spec import ArraySpec, as_json
from fastseg.data.outputs_zarr import ZarrStore
from fastseg.data.sources import reason
from fastseg.errors import InputError

Box = tuple[int, int, int]
Block = tuple[Box, Box]
Records = Mapping[int, Sequence[Mapping[str, Any]]]

OUTPUT_SUFFIXES = (".h5", ".hdf5", ".zarr")

_THREADS = min(4, os.cpu_count() or 1)


class Output:
    """An HDF5 file or Zarr hierarchy in the making; see :func:`open_output`."""

    def __init__(
        self,
        path: str,
        arrays: Mapping[str, ArraySpec],
        blocks: Sequence[Block],
        settings: Mapping[str, Any],
        resume: bool,
        rank: int,
        world: int,
        barrier: Callable[[], None],
    ) -> None:
        self.path, self.rank, self.world, self.resume = path, rank, world, resume
        self.arrays = {name: spec.settled(name) for name, spec in arrays.items()}
        self.blocks = list(blocks)
        self._numbers = {block: number for number, block in enumerate(self.blocks)}
        self._journal = Journal(path)
        is_zarr = path.lower().endswith(".zarr")
        self._store = (ZarrStore if is_zarr else Hdf5Store)(self._journal, self.arrays)
        self._check_blocks()
        self._plan = as_json(
            {
                "arrays": {name: spec.described() for name, spec in self.arrays.items()},
                "blocks": {
                    "count": len(self.blocks),
                    "first": self.blocks[0],
                    "digest": _digest(self.blocks),
                },
                "settings": settings,
            }
        )
        self._barrier = barrier
        self._finished_before: set[int] = set()
        self._lock = threading.Lock()
        self._broken = False

    def __enter__(self) -> Output:
        try:
            if self.rank == 0:
                self._prepare()
        finally:
            self._barrier()
        try:
            with _writing(self.path):
                self._begin()
        except BaseException:
            self._give_up()
            raise
        finally:
            self._barrier()  # before it no rank writes, so that all read the same manifests
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="fastseg-write")
        return self

    def pending(self) -> list[Block]:
        """The blocks left for this rank: a run of those that were not finished when all ranks began."""
        left = [block for number, block in enumerate(self.blocks) if number not in self._finished_before]
        return left[len(left) * self.rank // self.world : len(left) * (self.rank + 1) // self.world]

    def write(self, start: Sequence[int], stop: Sequence[int], arrays: Mapping[str, np.ndarray]) -> None:
        """Write one block, of arrays by name as (z, y, x) or (c, z, y, x); the block is finished with it.

        Arrays that are not given stay 0 there; ``{}`` marks a block as empty. InputError where the disk is full.
        Chunks that are 0 throughout are not stored.
        """
        block = (_triple(start), _triple(stop))
        if block not in self._numbers:
            raise ValueError(f"{block} is no block of {self.path}")
        for name, array in arrays.items():
            self._check_array(name, array, block)
        with self._lock, _writing(self.path):
            if self._broken:
                raise InputError(f"{self.path} cannot be written: an earlier block failed")
            self._broken = True
            units = [unit for name, array in arrays.items() for unit in self._units(name, array, block)]
            chunks = list(self._pool.map(lambda unit: self._store.encode(*unit), units))
            number = self._numbers[block]
            self._journal.append({"block": number, **self._store.store(chunks)})
            self._broken = False

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._pool.shutdown(cancel_futures=True)
        try:
            # An error of one rank must not leave the others waiting; a Ctrl-C reaches them all by itself.
            if isinstance(error, Exception) or error is None:
                self._finish(publish=error is None)
        except BaseException:
            self._give_up()
            if error is None:
                raise
        if error is not None:
            self._give_up()
        self._journal.close()

    def _finish(self, publish: bool) -> None:
        """Rank 0 makes the file whole when all are done; InputError on every rank if it does not."""
        self._store.close()
        self._barrier()
        try:
            if self.rank == 0 and publish:
                self._publish()
        finally:
            self._barrier()
            is_whole = not os.path.exists(self._journal.folder)
            self._barrier()  # only then may rank 0 remove what is left
        if not is_whole:
            raise InputError(f"{self.path} is not whole: another process failed")

    def _prepare(self) -> None:
        self._store.check_target(self.path)
        with _writing(self.path):
            replaced = self._journal.file("replaced")
            if os.path.isdir(replaced) and not os.path.exists(self.path):
                os.rename(replaced, self.path)
            self._journal.prepare(self._plan, self.resume, self._store.holds)

    def _begin(self) -> None:
        if self._journal.plan() != self._plan:
            raise InputError(f"{self.path} cannot be written: the first process could not begin it")
        records = self._journal.records()
        self._finished_before = _finished(records)
        self._journal.open_manifest(self.rank)
        if not self._is_published(records):
            self._store.open(self.rank, records.get(self.rank, []))

    def _is_published(self, records: Records) -> bool:
        """Whether an earlier run was killed after it had given the output its name."""
        return len(_finished(records)) == len(self.blocks) and self._store.is_published()

    def _publish(self) -> None:
        with _writing(self.path):
            records = self._journal.records()
            left = len(self.blocks) - len(_finished(records))
            if left:
                raise InputError(
                    f"{self.path} is not whole: {left} of {len(self.blocks)} blocks are not written"
                )
            if not self._is_published(records):
                self._store.check_target(self.path)
                self._store.publish(records)
            self._journal.discard()

    def _give_up(self) -> None:
        self._store.close()
        if self._journal.is_open and not self.resume and self.rank == 0:
            with suppress(OSError):
                self._journal.discard()
        self._journal.close()

    def _check_blocks(self) -> None:
        shapes = {spec.shape[-3:] for spec in self.arrays.values()}
        if len(shapes) != 1:
            raise ValueError(f"the arrays of an output must agree in (z, y, x), got {sorted(shapes)}")
        shape = shapes.pop()
        voxels = sum(math.prod(b - a for a, b in zip(*block, strict=True)) for block in self.blocks)
        if voxels != math.prod(shape) or len(self._numbers) != len(self.blocks):
            raise ValueError(f"blocks must tile the volume {shape} once, got {voxels} voxels in all")
        for name in self.arrays:
            unit = self._store.unit(name)[-3:]
            for start, stop in self.blocks:
                for a, b, u, n in zip(start, stop, unit, shape, strict=True):
                    if a % u or (b % u and b != n) or not 0 <= a < b <= n:
                        raise ValueError(
                            f"block {start}, {stop} must begin and end on {name}'s chunks or shards {unit}, or "
                            f"end with the volume {shape}"
                        )

    def _check_array(self, name: str, array: np.ndarray, block: Block) -> None:
        if name not in self.arrays:
            raise ValueError(f"{self.path} has no array {name!r}, it has {', '.join(self.arrays)}")
        spec = self.arrays[name]
        expected = (*spec.shape[:-3], *(b - a for a, b in zip(*block, strict=True)))
        if array.shape != expected:
            raise ValueError(f"{name} must be {expected} in block {block}, got {array.shape}")
        if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            raise ValueError(f"{name} must be {spec.dtype}, got {array.dtype}")

    def _units(self, name: str, array: np.ndarray, block: Block) -> Iterator[tuple[str, Any, np.ndarray]]:
        """(name, index, box) of each chunk or shard of a block."""
        unit = self._store.unit(name)
        low = (*(0 for _ in array.shape[:-3]), *block[0])
        array = array.astype(self.arrays[name].dtype, copy=False)
        for corner in itertools.product(*(range(0, n, u) for n, u in zip(array.shape, unit, strict=True))):
            box = tuple(slice(c, c + u) for c, u in zip(corner, unit, strict=True))
            yield name, tuple((a + c) // u for a, c, u in zip(low, corner, unit, strict=True)), array[box]


def open_output(
    path: str | os.PathLike[str],
    arrays: Mapping[str, ArraySpec],
    *,
    blocks: Sequence[Block] | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = False,
    rank: int = 0,
    world: int = 1,
    barrier: Callable[[], None] | None = None,
) -> Output:
    """An output volume to write block by block, ``x.h5`` or ``x.zarr`` by its suffix. Use as a context manager::

        with open_output("x.zarr", {"segmentation": ArraySpec(shape, "u1", (16, 128, 128))}, blocks=blocks) as output:
            for start, stop in output.pending():
                output.write(start, stop, {"segmentation": compute(start, stop)})

    arrays: by name; all of one (z, y, x). blocks: boxes (start, stop) that tile it, aligned to the chunks (of Zarr
    with shards, to these); by default one block, the whole. settings: what else decides the result, for example
    the hash of a checkpoint: strings, numbers, sequences and dicts of them.
    resume: go on with the ``<path>.partial`` of an earlier run of the same arrays, blocks and settings; one of
    another plan is an InputError that names what differs. An error inside then leaves the partial folder for the
    next attempt. Without resume the partial of an earlier run is removed, and after an error this one's too.
    rank, world, barrier: several processes write one output, each the blocks that pending() gives it; barrier
    (for example torch.distributed.barrier) must return when all have called it. Rank 0 makes the file whole.

    What stands at ``path`` is replaced only when the new output is whole. InputError if it cannot be written. The
    result does not depend on the number of ranks or on interruptions, for HDF5 to the byte. Memory: the block and
    its compressed chunks. HDF5 needs disk space for the compressed volume twice while it is assembled.
    """
    path = os.fspath(path)
    if not path.lower().endswith(OUTPUT_SUFFIXES):
        raise InputError(f"{path} must end in one of {', '.join(OUTPUT_SUFFIXES)}")
    if not arrays:
        raise ValueError(f"{path} needs at least one array")
    if not 0 <= rank < world or (world > 1 and barrier is None):
        raise ValueError(f"rank {rank} of {world}: needs 0 <= rank < world, and a barrier for more than one")
    if blocks is None:
        shape = next(iter(arrays.values())).shape[-3:]
        blocks = [((0, 0, 0), _triple(shape))]
    blocks = [(_triple(start), _triple(stop)) for start, stop in blocks]
    return Output(path, arrays, blocks, settings or {}, resume, rank, world, barrier or (lambda: None))


def is_begun(path: str) -> bool:
    """Whether an output of this name was begun and is not whole, or not known to be."""
    return Journal(path).plan() is not None


@contextmanager
def _writing(path: str) -> Iterator[None]:
    """Turns the operating system's errors into one that names the output."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason(error)}") from error


def _finished(records: Records) -> set[int]:
    return {record["block"] for lines in records.values() for record in lines}


def _digest(blocks: Sequence[Block]) -> str:
    return hashlib.sha256(json.dumps(blocks).encode()).hexdigest()


def _triple(values: Sequence[int]) -> Box:
    z, y, x = (int(v) for v in values)
    return (z, y, x)
