# SPDX-License-Identifier: BSD-3-Clause
"""Compression and checksums of chunks, by the names that Zarr and N5 give them.

All of it runs outside Python's lock, keeps no state and starts no threads: safe from any thread and after a fork.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

# What numcodecs may be asked for by a file's metadata. Its codec `pickle` would run code out of the file.
_FILTERS = ("adler32", "astype", "bitround", "crc32", "delta", "fixedscaleoffset", "fletcher32")
_FILTERS += ("lz4", "packbits", "quantize", "shuffle", "zstd")
NAMES = ("blosc", "bz2", "crc32c", "gzip", "lzma", "zlib", *_FILTERS)


def decode(name: str, settings: Mapping[str, Any], data: Any, size: int | None = None) -> Any:
    """Undo one codec. size: bytes that must come out, where they are known.

    ValueError, or an error of the library's own, where the data are damaged.
    """
    if name in ("gzip", "zlib"):
        return _inflate(data, size)
    if name == "blosc":
        return _unblosc(data, size)
    if name == "crc32c":
        return _checked_crc32c(data)
    if name == "bz2":
        return bz2.decompress(data)
    if name == "lzma":
        filters = settings.get("filters")
        return lzma.decompress(data, settings.get("format", lzma.FORMAT_XZ) if filters else 0, None, filters)
    import numcodecs

    return numcodecs.get_codec({**settings, "id": name}).decode(data)


def known_codec(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether :func:`decode` can undo a codec of these settings."""
    if name not in _FILTERS:
        return name in NAMES
    import numcodecs

    try:
        numcodecs.get_codec({**settings, "id": name})
    except Exception:  # each codec has its own way of refusing settings
        return False
    return True


def _inflate(data: Any, size: int | None) -> bytes:
    stream = zlib.decompressobj(wbits=47)  # zlib or gzip, whichever the header says
    # One byte more than there should be shows a stream that is too long without decoding all of it.
    content = stream.decompress(data, size + 1 if size is not None else 0)
    if not stream.eof or stream.unused_data:
        raise ValueError("its compressed stream is too short or too long")
    return content


def _unblosc(data: Any, size: int | None) -> bytes:
    import imagecodecs

    view = memoryview(data)
    if len(view) < 16:
        raise ValueError("its Blosc header is cut off")
    decoded, held = (int.from_bytes(view[at : at + 4], "little") for at in (4, 12))
    if held != len(view) or size not in (None, decoded):
        raise ValueError(f"its Blosc header tells of {held} bytes, there are {len(view)}")
    return imagecodecs.blosc_decode(data, numthreads=1)


def _checked_crc32c(data: Any) -> memoryview:
    import google_crc32c

    content, stated = memoryview(data)[:-4], bytes(data[-4:])
    if google_crc32c.value(bytes(content)).to_bytes(4, "little") != stated:
        raise ValueError("its CRC32C does not agree")
    return content


def as_array(data: Any, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Decoded bytes as an array; ValueError unless they are as many as it takes."""
    flat = data.reshape(-1).view(np.uint8) if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    wanted = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if len(flat) != wanted:
        raise ValueError(f"it holds {len(flat)} bytes instead of {wanted}")
    return flat.view(dtype).reshape(shape)
