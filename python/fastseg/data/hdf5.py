# SPDX-License-Identifier: BSD-3-Clause
"""HDF5 datasets as sources."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fastseg.data.hdf5_chunks import StoredChunk, StoredChunks, stored_chunks
from fastseg.data.sources import Slices, Source, describe_box, guess_axes, reason
from fastseg.errors import InputError

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")

# HDF5's default chunk cache of 1 MiB holds less than one patch's chunks, so that each read decodes them anew.
_CACHE_BYTES = 64 << 20
_CACHE_SLOTS = 100_003


class Hdf5Source(Source):
    def __init__(self, path: str, dataset: str | None) -> None:
        super().__init__()
        self.path = path
        self.name = path
        file = self.handle()
        if dataset is None:
            dataset = self._only_dataset(file)
        self.dataset = "/" + dataset.strip("/")
        self.name = f"{path}:{self.dataset}"
        array = self._array(file)
        self.shape, self.dtype, self.chunks = array.shape, array.dtype, array.chunks
        self._stored: tuple[int, StoredChunks | None] | None = None
        self.axes = guess_axes(len(self.shape))
        self.voxel_size = _hdf5_voxel_size(array.attrs)

    def open(self) -> Any:
        import h5py

        try:
            return h5py.File(self.path, "r", rdcc_nbytes=_CACHE_BYTES, rdcc_nslots=_CACHE_SLOTS)
        except OSError as error:
            raise InputError(f"{self.path} cannot be opened as HDF5: {reason(error)}") from error

    def read(self, slices: Slices) -> np.ndarray:
        try:
            return self._array(self.handle())[slices]
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{self.name} cannot be read at {describe_box(slices)}: {reason(error)}"
            ) from error

    def offers_chunks(self) -> bool:
        return self._chunks() is not None

    def chunk_bytes(self, index: tuple[int, ...]) -> StoredChunk | None:
        """The chunk at ``index`` of the chunk grid as stored, None if it was never written. Takes no lock."""
        stored = self._chunks()
        assert stored is not None, "only where offers_chunks()"
        return stored.read(index)

    def decode(self, data: StoredChunk | None) -> np.ndarray:
        """The array of a whole chunk, also at the border; of fill values for None. Takes no lock."""
        stored = self._chunks()
        assert stored is not None, "only where offers_chunks()"
        return stored.decode(data)

    def _chunks(self) -> StoredChunks | None:
        found = self._stored
        if found is None or found[0] != os.getpid():
            array = self._array(self.handle())
            with self._lock:
                if self._stored is None or self._stored[0] != os.getpid():
                    self._stored = (os.getpid(), stored_chunks(array))
                found = self._stored
        return found[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stored": None}

    def _array(self, file: Any) -> Any:
        import h5py

        try:
            array = file[self.dataset]
        except KeyError:
            array = None
        if not isinstance(array, h5py.Dataset):
            raise InputError(f"{self.path} has no dataset {self.dataset}; it has {_listing(_datasets(file))}")
        return array

    def _only_dataset(self, file: Any) -> str:
        names = _datasets(file)
        if len(names) != 1:
            raise InputError(
                f"{self.path} needs a dataset, as in {os.path.basename(self.path)}:{(names or ['/raw'])[0]}; "
                f"it has {_listing(names)}"
            )
        return names[0]


def _datasets(file: Any) -> list[str]:
    import h5py

    names: list[str] = []
    file.visititems(lambda name, item: names.append("/" + name) if isinstance(item, h5py.Dataset) else None)
    return names


def _hdf5_voxel_size(attributes: Any) -> tuple[float, float, float] | None:
    # Only names that state their unit; a bare "resolution" may be nanometres, micrometres or pixels per inch.
    for key, to_micrometre in (("element_size_um", 1.0), ("voxel_size_um", 1.0), ("resolution_nm_zyx", 1e-3)):
        if key in attributes and np.size(attributes[key]) == 3:
            z, y, x = (float(v) * to_micrometre for v in np.ravel(attributes[key]))
            return (z, y, x)
    return None


def _listing(names: list[str]) -> str:
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return shown or "no dataset at all"
