# SPDX-License-Identifier: BSD-3-Clause
"""Chunks read and decoded in one call in C++, many at a time, by the C functions behind imagecodecs and numcodecs.

Through these packages every chunk costs Python some steps under its lock, which take as long as a fast codec. Their
libraries are found by their symbols. Where a package does not show them, or where a chunk is not plainly as it should
be, the caller decodes by ``codecs.py``, which says what is wrong.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from fastseg import _C

_ZSTD = ("ZSTD_createDCtx", "ZSTD_freeDCtx", "ZSTD_decompressDCtx")
_DEFLATE = ("alloc_decompressor", "free_decompressor", "zlib_decompress_ex", "gzip_decompress_ex")

# Of each codec the library, its functions in the order of csrc/chunk_codecs.cpp, and modules that are linked to it, the
# faster build first: the Blosc of numcodecs knows AVX2.
_LIBRARIES = {
    "deflate": (tuple(f"libdeflate_{name}" for name in _DEFLATE), ("imagecodecs._deflate",)),
    "zstd": (_ZSTD, ("imagecodecs._zstd", "numcodecs.zstd")),
    "blosc": (("blosc_decompress_ctx",), ("numcodecs.blosc", "imagecodecs._blosc")),
}
_LIBRARY_OF = {"zlib": "deflate", "gzip": "deflate", "zstd": "zstd", "blosc": "blosc"}


@dataclass(frozen=True)
class ChunkFormat:
    """How every chunk of an array is stored: a header, the same for all, and one codec over bytes that may be shuffled,
    a number's ``shuffled_bytes`` apart (0: not). most_stored: bytes that a chunk may take."""

    dtype: np.dtype
    shape: tuple[int, ...]
    codec: str
    most_stored: int
    shuffled_bytes: int = 0
    header: bytes = b""

    @property
    def known(self) -> bool:
        return self.codec == "none" or (self.codec in _LIBRARY_OF and _found(_LIBRARY_OF[self.codec]))

    def read(
        self, offsets: Sequence[int], sizes: Sequence[int], files: Sequence[str] = (), open_file: int = -1
    ) -> list[np.ndarray | bool | None]:
        """Chunks at offsets of files of their own, or of one that is open; None: no such file, False: not decoded."""
        options = (self.codec, self.shuffled_bytes, self.header, self.most_stored, self.dtype, self.shape)
        return _C.read_chunks(files, open_file, offsets, sizes, *options)


@cache
def _found(library: str) -> bool:
    functions, modules = _LIBRARIES[library]
    for module in modules:
        try:
            path = importlib.import_module(module).__file__
            loaded = ctypes.CDLL(path)
            addresses = [ctypes.cast(loaded[name], ctypes.c_void_p).value or 0 for name in functions]
        except (ImportError, OSError, AttributeError, TypeError):
            continue
        _C.set_codec_functions(library, addresses)
        return True
    return False
