# SPDX-License-Identifier: BSD-3-Clause
"""Chunks that C++ reads and decodes, many in one call, by the C functions behind imagecodecs and numcodecs.

Through these packages every chunk costs Python some steps under its lock, which take as long as a fast codec. Their
libraries are found by their symbols. Where a package does not show them, or where a chunk is not plainly as it should
be, the reader decodes by ``codecs.py``, which says what is wrong.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from functools import cache
from typing import Any

import numpy as np

from fastseg import _C

ABSENT = -2  # the size of a chunk that was never written

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


class ChunkLayout(_C.ChunkLayout):
    """What the chunks of an array are, and how they are stored: a header, the same for all, and one codec over bytes
    that may be shuffled, a number's ``shuffled_bytes`` apart (0: not). Python decodes where there is no codec, or one
    that C++ does not know. most_stored: bytes that a chunk may take. order: which axis each axis of a stored chunk is.

    files: what the names of chunks' files begin with, what stands between the numbers of their place in the grid, and
    whether the last axis comes first; otherwise ``set_table`` or the reader says where they are. Arrays of one name
    share their chunks in a cache.
    """

    def __init__(
        self,
        name: str,
        dtype: np.dtype,
        chunks: tuple[int, ...],
        fill: Any = 0,
        codec: str = "",
        most_stored: int = 0,
        shuffled_bytes: int = 0,
        header: bytes = b"",
        order: tuple[int, ...] = (),
        files: tuple[str, str, bool] | None = None,
    ) -> None:
        how = (codec, most_stored, shuffled_bytes, header, order, files)
        self._arguments = (name, dtype, chunks, fill, *how)
        if codec != "none" and not (codec in _LIBRARY_OF and _found(_LIBRARY_OF[codec])):
            codec = ""
        names = (os.fsencode(files[0]), *files[1:]) if files else None
        how = (codec, most_stored, shuffled_bytes, header, order, names)
        super().__init__(name, dtype, chunks, np.full(1, fill, dtype), *how)

    def __reduce__(self) -> tuple[Any, ...]:
        return ChunkLayout, self._arguments


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
