# SPDX-License-Identifier: BSD-3-Clause
"""HDF5 outputs: chunks are collected in logs, and the file is assembled from them when all are there.

libhdf5 promises nothing about a file whose writer was killed: one lost B-tree node makes all of it unreadable,
whatever was flushed before. So nothing is written to HDF5 until nothing is left to compute. Each rank appends
its chunks to a log, compressed as HDF5 stores them (a zlib stream, as its deflate filter makes it); assembling
copies these bytes with H5Dwrite_chunk, without compressing anything again. A crash while assembling costs only
the assembling. The price is disk space for the compressed volume twice, for a moment.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastseg.data.outputs_journal import Journal, append_durably, open_appending, sync_folder
from fastseg.data.outputs_spec import ArraySpec, Index, pad_to
from fastseg.data.sources import reason
from fastseg.errors import InputError

# The higher levels cost several times more for a few per cent of size.
_LEVEL = 1


class Hdf5Store:
    """Chunks of the arrays of one HDF5 file, as logs under the journal's folder."""

    def __init__(self, journal: Journal, arrays: Mapping[str, ArraySpec]) -> None:
        self.journal, self.arrays = journal, arrays
        self._log: Any = None

    def check_target(self, path: str) -> None:
        if os.path.isdir(path):
            raise InputError(f"{path} cannot be written: it is a folder")

    def unit(self, name: str) -> Index:
        """The box that is stored as one piece: blocks must be aligned to it."""
        return self.arrays[name].chunks

    def holds(self, rank: int, record: Mapping[str, Any]) -> bool:
        """Whether the chunks of a record are in the log of its rank."""
        path = self._log_path(rank)
        return os.path.exists(path) and os.path.getsize(path) >= record["end"]

    def open(self, rank: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Open this rank's log to go on behind its finished blocks."""
        self._end = records[-1]["end"] if records else 0
        self._log = open_appending(self._log_path(rank))
        self._log.truncate(self._end)

    def encode(self, name: str, index: Index, box: np.ndarray) -> tuple[str, Index, bytes | None]:
        return name, index, encode_chunk(box, self.arrays[name].chunks)

    def store(self, chunks: Sequence[tuple[str, Index, bytes | None]]) -> dict[str, Any]:
        """Append chunks to the log and flush them; returns what the manifest must say of them."""
        entries = []
        for name, index, data in chunks:
            if data is not None:
                entries.append([name, list(index), self._end, len(data), zlib.crc32(data)])
                self._end += len(data)
        append_durably(self._log, (data for _, _, data in chunks if data is not None))
        return {"chunks": entries, "end": self._end}

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def publish(self, records: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
        """Assemble the file from the logs of all ranks and give it its name."""
        import h5py

        # In one order whatever the ranks and blocks, so that the same volume makes the same file.
        entries = {
            (name, tuple(index)): (rank, offset, size, checksum)
            for rank, lines in records.items()
            for line in lines
            for name, index, offset, size, checksum in line["chunks"]
        }
        logs = {rank: self._log_path(rank) for rank in records}
        storage = _Storage(self.journal.file("whole.h5"), "w+")
        try:
            file = h5py.File(storage, "w")
            try:
                datasets = {name: self._create(file, name) for name in self.arrays}
                handles = {rank: open(path, "rb") for rank, path in logs.items()}  # noqa: SIM115
                try:
                    for (name, index), (rank, offset, size, checksum) in sorted(entries.items()):
                        handles[rank].seek(offset)
                        data = handles[rank].read(size)
                        if len(data) != size or zlib.crc32(data) != checksum:
                            raise InputError(f"{logs[rank]} is damaged at byte {offset}: begin anew")
                        chunks = self.arrays[name].chunks
                        corner = tuple(i * c for i, c in zip(index, chunks, strict=True))
                        datasets[name].id.write_direct_chunk(corner, data)
                        self._check(storage)
                finally:
                    for handle in handles.values():
                        handle.close()
            finally:
                file.close()
            storage.sync()
            self._check(storage)
        finally:
            storage.close()
        os.replace(storage.name, self.journal.path)
        sync_folder(os.path.dirname(self.journal.path) or ".")

    def is_published(self) -> bool:
        return False  # assembling again is harmless

    def _log_path(self, rank: int) -> str:
        return self.journal.file(f"chunks.{rank}")

    def _create(self, file: Any, name: str) -> Any:
        spec = self.arrays[name]
        dataset = file.create_dataset(
            name, spec.shape, spec.dtype, chunks=spec.chunks, compression="gzip", compression_opts=_LEVEL
        )
        if spec.voxel_size is not None:
            dataset.attrs["element_size_um"] = spec.voxel_size
        dataset.attrs.update(spec.attributes)
        return dataset

    def _check(self, storage: _Storage) -> None:
        if storage.failure is not None:
            raise InputError(f"{self.journal.path} cannot be written: {reason(storage.failure)}")


def encode_chunk(box: np.ndarray, chunks: Index) -> bytes | None:
    """A chunk as HDF5's deflate filter stores it, whole at the volume's far faces too; None if all is 0."""
    import imagecodecs

    whole = pad_to(box, chunks)
    # libdeflate: a third of the time of zlib for probabilities, at the same size
    return imagecodecs.deflate_encode(whole, _LEVEL) if whole.view(np.uint8).any() else None


class _Storage(io.FileIO):
    """A file that remembers its first failure and takes the rest of the writes as done.

    HDF5 cannot close a file whose last writes fail, and takes the process down with it at exit.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self.failure is None:
            try:
                done += super().write(view[done:])
            except OSError as error:
                self.failure = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0

    def sync(self) -> None:
        try:
            os.fsync(self.fileno())
        except OSError as error:
            self.failure = self.failure or error
