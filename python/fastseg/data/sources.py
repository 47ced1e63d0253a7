# SPDX-License-Identifier: BSD-3-Clause
"""What every array file offers: shape, dtype, chunks, voxel size and lazy reading in the file's own axes.

A source opens its file when it is read, in each process anew (open_files.py), so it pickles as its path and survives
fork and spawn.
Its errors are InputErrors that name the file. The formats are in hdf5.py, zarr.py, n5.py, tiff.py, images.py,
nifti.py, mrc.py, imaris.py, czi.py, lif.py and nd2.py; .npy is here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from fastseg import _C
from fastseg.data.open_files import OpenFile
from fastseg.errors import InputError

if TYPE_CHECKING:
    from fastseg.data.chunks import ChunkReader

# Units as files spell them; an axis without a unit has no size.
MICROMETRES = {
    **dict.fromkeys(("angstrom", "Å", "Angstrom"), 1e-4),
    **dict.fromkeys(("nanometer", "nanometre", "nm"), 1e-3),
    **dict.fromkeys(("micrometer", "micrometre", "micron", "microns", "um", "µm", "μm", "\\u00B5m"), 1.0),
    **dict.fromkeys(("millimeter", "millimetre", "mm"), 1e3),
    **dict.fromkeys(("centimeter", "centimetre", "cm"), 1e4),
    **dict.fromkeys(("meter", "metre", "m"), 1e6),
}

Slices = tuple[slice, ...]


class Source(OpenFile):
    """What every format offers. ``axes`` is a string over "tczyx", one letter per axis of ``shape``."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    axes: str
    chunks: tuple[int, ...] | None = None
    voxel_size: tuple[float, float, float] | None = None  # micrometres, z y x
    channel_names: tuple[str, ...] = ()  # where the file states them, one per channel
    alpha: bool = False  # whether the last channel is transparency, which no volume shows

    def chunk_reader(self) -> ChunkReader | None:
        """What reads single chunks; None where the file alone knows how."""
        return None

    def read(self, slices: Slices) -> np.ndarray:
        """The box ``slices`` of the file, one slice of step 1 per axis."""
        raise NotImplementedError

    def read_into(self, slices: Slices, out: np.ndarray) -> None:
        """The same to ``out``, a view of any strides and of a dtype that holds the file's."""
        out[...] = self.read(slices)


class NpySource(Source):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.name = self.path = path
        with self.handle() as array:
            self.shape, self.dtype = array.shape, array.dtype
        self.axes = guess_axes(len(self.shape))

    def open(self) -> Any:
        try:
            return np.load(self.path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # damaged headers raise whatever Python's parser does
            raise InputError(f"{self.path} cannot be opened as .npy: {reason(error)}") from error

    def read(self, slices: Slices) -> np.ndarray:
        out = np.empty([s.stop - s.start for s in slices], self.dtype.newbyteorder("="))
        self.read_into(slices, out)
        return out

    def read_into(self, slices: Slices, out: np.ndarray) -> None:
        with self.handle() as array:  # pages that are not in memory yet are waited for outside Python's lock
            _C.copy_boxes(out, [array], [tuple(-s.start for s in slices)])


def guess_axes(ndim: int) -> str:
    return {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}.get(ndim, "")


def describe_box(slices: Slices) -> str:
    return "[" + ", ".join(f"{s.start}:{s.stop}" for s in slices) + "]"


def reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def attribute_voxel_size(attributes: Any) -> tuple[float, float, float] | None:
    """Micrometres (z, y, x) from attributes whose names state their unit; a bare "resolution" may be nanometres,
    micrometres or pixels per inch."""
    for key, to_micrometre in (("element_size_um", 1.0), ("voxel_size_um", 1.0), ("resolution_nm_zyx", 1e-3)):
        value = attributes.get(key)
        if value is not None and np.size(value) == 3:
            z, y, x = (float(v) * to_micrometre for v in np.ravel(value))
            return (z, y, x)
    return None


def need(library: str, path: str) -> Any:
    """A library that not every installation has; InputError that says how to get it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise InputError(
            f"{path} needs {library.partition('.')[0]}: pip install 'fastseg[formats]' (docs/volumes.md)"
        ) from error


def listing(names: list[str]) -> str:
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return shown or "no dataset at all"
