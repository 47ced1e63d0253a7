# SPDX-License-Identifier: BSD-3-Clause
"""HDF5 datasets as sources."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import numpy as np

from fastseg.data.hdf5_chunks import StoredChunks, stored_chunks
from fastseg.data.sources import (
    Slices,
    Source,
    attribute_voxel_size,
    describe_box,
    guess_axes,
    listing,
    reason,
)
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
        try:
            with self.handle() as file:
                self._describe(file, dataset)
        except InputError:
            raise
        except Exception as error:  # libhdf5's errors come as half a dozen types
            raise InputError(f"{self.name} cannot be opened as HDF5: {reason(error)}") from error

    def after_fork(self) -> None:
        super().after_fork()
        from h5py._objects import phil

        # h5py's own lock, which it renews itself: with another one, a thread that has this and opens the file and a
        # thread that reads in a callback of h5py's would wait for each other.
        self._lock = phil

    def _describe(self, file: Any, dataset: str | None) -> None:
        if dataset is None:
            dataset = self._only_dataset(file)
        self.dataset = "/" + dataset.strip("/")
        self.name = f"{self.path}:{self.dataset}"
        array = self._array(file)
        _require_filters(self.name, array)
        if array.fletcher32:
            _require_chunk_sizes(self.name, array)
        self.shape, self.dtype, self.chunks = array.shape, array.dtype, array.chunks
        self._stored: tuple[int, StoredChunks | None] | None = None
        self.axes = guess_axes(len(self.shape))
        self.voxel_size = attribute_voxel_size(array.attrs)

    def open(self) -> Any:
        import h5py

        try:
            return h5py.File(self.path, "r", rdcc_nbytes=_CACHE_BYTES, rdcc_nslots=_CACHE_SLOTS)
        except Exception as error:  # libhdf5's errors come as half a dozen types
            raise InputError(f"{self.path} cannot be opened as HDF5: {reason(error)}") from error

    def read(self, slices: Slices) -> np.ndarray:
        try:
            with self.handle() as file:
                return self._array(file)[slices]
        except Exception as error:  # libhdf5's errors come as half a dozen types
            raise InputError(
                f"{self.name} cannot be read at {describe_box(slices)}: {reason(error)}"
            ) from error

    def chunk_reader(self) -> StoredChunks | None:
        """Where each chunk lies is looked up once in each process."""
        found = self._stored
        if found is None or found[0] != os.getpid():
            with self.handle() as file, self._lock:
                if self._stored is None or self._stored[0] != os.getpid():
                    self._stored = (os.getpid(), stored_chunks(self.name, self._array(file)))
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
            raise InputError(f"{self.path} has no dataset {self.dataset}; it has {listing(_datasets(file))}")
        return array

    def _only_dataset(self, file: Any) -> str:
        names = _datasets(file)
        if len(names) != 1:
            raise InputError(
                f"{self.path} needs a dataset, as in {os.path.basename(self.path)}:{(names or ['/raw'])[0]}; "
                f"it has {listing(names)}"
            )
        return names[0]


def _datasets(file: Any) -> list[str]:
    import h5py

    names: list[str] = []
    file.visititems(lambda name, item: names.append("/" + name) if isinstance(item, h5py.Dataset) else None)
    return names


def _require_filters(name: str, array: Any) -> None:
    import h5py

    settings = array.id.get_create_plist()
    for place in range(settings.get_nfilters()):
        number, _, _, label = settings.get_filter(place)
        if not h5py.h5z.filter_avail(number):
            with suppress(ImportError):
                import hdf5plugin  # noqa: F401  registers the filters it brings
        if not h5py.h5z.filter_avail(number):
            what = label.decode(errors="replace") or "unnamed"
            raise InputError(
                f"{name} is compressed by the HDF5 filter {number} ({what}), which is not installed: "
                + (
                    "use an h5py built with szip"
                    if number == h5py.h5z.FILTER_SZIP
                    else "pip install hdf5plugin"
                )
            )


def _require_chunk_sizes(name: str, array: Any) -> None:
    """libhdf5 (2.0 and before) takes the process down at a chunk that is smaller than its Fletcher-32 checksum."""
    if not hasattr(array.id, "chunk_iter"):  # an h5py built with HDF5 before 1.12.3
        return
    damaged: list[Any] = []
    array.id.chunk_iter(lambda info: damaged.append(info) if info.size < 4 else None)
    if damaged:
        raise InputError(
            f"{name} cannot be read: its index of chunks is damaged at {damaged[0].chunk_offset}"
        )
