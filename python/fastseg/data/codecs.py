# SPDX-License-Identifier: BSD-3-Clause
"""Compression and checksums of chunks, by the names that Zarr and N5 give them.

All of it runs outside Python's lock, keeps no state and starts no threads: safe from any thread and after a fork.
"""

from __future__ import annotations

import bz2
import lzma
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_MOST_DICTIONARY = 1 << 30

# How a gzip stream begins. N5 and old Zarr files may hold zlib's instead, under the same name.
_GZIP = b"\x1f\x8b"

# What numcodecs may be asked for by a file's metadata. Its codec `pickle` would run code out of the file.
_FILTERS = ("adler32", "astype", "bitround", "crc32", "delta", "fixedscaleoffset", "fletcher32")
_FILTERS += ("lz4", "packbits", "quantize", "shuffle", "zstd")
NAMES = ("blosc", "bz2", "crc32c", "gzip", "lzma", "zlib", *_FILTERS)


def stored_bytes(size: int) -> int:
    """The most that a chunk of ``size`` bytes takes by a codec that makes it longer, which none does by half."""
    return 2 * size + (1 << 20)


def decode(name: str, settings: Mapping[str, Any], data: Any, most: int, *, exact: bool = False) -> Any:
    """Undo one codec. most: bytes that may come out, or with ``exact`` must: no more are made, whatever the data say.

    ValueError, or an error of the library's own, where the data are damaged.
    """
    if name in ("gzip", "zlib"):
        return _inflate(data, most)
    if name == "blosc":
        return _unblosc(data, most, exact)
    if name == "crc32c":
        return _checked_crc32c(data)
    if name == "bz2":
        return _decompress(bz2.BZ2Decompressor, data, most)
    if name == "lzma":
        return _decompress(lambda: _lzma_stream(settings), data, most)
    if name == "zstd":
        import imagecodecs

        return imagecodecs.zstd_decode(data, out=most)
    if name == "lz4":
        _require_size(int.from_bytes(memoryview(data)[:4], "little"), most, False)
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


def _inflate(data: Any, most: int) -> bytes:
    if bytes(data[:2]) == _GZIP:
        import imagecodecs

        # libdeflate: in half the time of Python's zlib. It stops at the stream's end, whatever follows.
        content = imagecodecs.gzip_decode(data, out=most)
        if int.from_bytes(data[-4:], "little") != len(content) % 2**32:
            raise ValueError("its compressed stream is too short or too long")
        return content
    stream = zlib.decompressobj(wbits=47)  # zlib or gzip, whichever the header says
    # One byte more than there should be shows a stream that is too long without decoding all of it.
    content = stream.decompress(data, most + 1)
    if not stream.eof or stream.unused_data:
        raise ValueError("its compressed stream is too short or too long")
    return content


def _decompress(begin: Callable[[], Any], data: Any, most: int) -> bytes:
    """All streams of bz2 or lzma, one after another; what follows them is left, as the library itself does."""
    pieces: list[bytes] = []
    left = most
    while data:
        stream = begin()
        try:
            piece = stream.decompress(data, left + 1)
        except (OSError, lzma.LZMAError):
            if not pieces:
                raise
            break
        if not stream.eof or len(piece) > left:
            raise ValueError("its compressed stream is too short or too long")
        pieces.append(piece)
        left -= len(piece)
        data = stream.unused_data
    return b"".join(pieces)


def _lzma_stream(settings: Mapping[str, Any]) -> lzma.LZMADecompressor:
    filters = settings.get("filters")
    kind = settings.get("format", lzma.FORMAT_XZ) if filters else lzma.FORMAT_AUTO
    if kind == lzma.FORMAT_RAW:
        for each in filters or ():
            _require_size(each.get("dict_size", 0), _MOST_DICTIONARY, False)
        return lzma.LZMADecompressor(kind, None, filters)
    return lzma.LZMADecompressor(kind, _MOST_DICTIONARY)


def _require_size(size: int, most: int, exact: bool) -> None:
    if size > most or (exact and size != most):
        raise ValueError(f"it declares {size:,} bytes, {'' if exact else 'at most '}{most:,} are right")


def _unblosc(data: Any, most: int, exact: bool) -> bytes:
    import imagecodecs

    view = memoryview(data)
    if len(view) < 16:
        raise ValueError("its Blosc header is cut off")
    decoded, held = (int.from_bytes(view[at : at + 4], "little") for at in (4, 12))
    if held != len(view):
        raise ValueError(f"its Blosc header tells of {held} bytes, there are {len(view)}")
    _require_size(decoded, most, exact)
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
    wanted = dtype.itemsize * math.prod(shape)
    if len(flat) != wanted:
        raise ValueError(f"it holds {len(flat)} bytes instead of {wanted}")
    return flat.view(dtype).reshape(shape)
