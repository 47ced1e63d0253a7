# SPDX-License-Identifier: BSD-3-Clause
"""Damages a stored volume in many ways and reads it each time; run by test_damaged.py.

    python -m tests.data.damage FOLDER KIND FIRST LAST

Prints how many of the damages were named and how many did no harm. Anything but an InputError that names the
file, or what was stored where a checksum guards it, ends the run with a message; so does a crash or a hang.
"""

from __future__ import annotations

import faulthandler
import random
import resource
import shutil
import signal
import sys
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import tifffile
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from fastseg.data.volumes import open_volume
from fastseg.errors import InputError
from tests.data.formats import Case, write

SHAPE = (6, 40, 44)
ARRAY = (np.random.default_rng(0).random(SHAPE) * 60_000).astype("u2")
_HDF5 = {
    "libver": "earliest",
    "contiguous": False,
    "compression": "gzip",
    "shuffle": True,
    "fletcher32": False,
}
_ZARR2 = {"separator": ".", "order": "C"}
_TIFF = {"tile": False, "predictor": None, "byteorder": "<"}
_N5 = {"driver": "n5"}
VARIANTS: dict[str, tuple[Case, bool]] = {  # with whether checksums guard the chunks
    "hdf5-gzip": (Case("hdf5", "<u2", (2, 16, 16), _HDF5), True),
    "hdf5-fletcher": (
        Case("hdf5", "<u2", (2, 16, 16), {**_HDF5, "compression": None, "fletcher32": True}),
        True,
    ),
    "hdf5-lzf-latest": (
        Case("hdf5", "<u2", (2, 16, 16), {**_HDF5, "compression": "lzf", "libver": "latest"}),
        False,
    ),
    "hdf5-contiguous": (Case("hdf5", "<u2", (2, 16, 16), {**_HDF5, "contiguous": True}), False),
    "zarr2-zlib": (Case("zarr2", "<u2", (2, 16, 16), {**_ZARR2, "compressors": numcodecs.Zlib()}), True),
    "zarr2-blosc": (Case("zarr2", "<u2", (2, 16, 16), {**_ZARR2, "compressors": numcodecs.Blosc()}), False),
    "zarr2-lz4": (Case("zarr2", "<u2", (2, 16, 16), {**_ZARR2, "compressors": numcodecs.LZ4()}), False),
    "zarr2-lzma": (Case("zarr2", "<u2", (2, 16, 16), {**_ZARR2, "compressors": numcodecs.LZMA()}), True),
    "zarr2-plain": (Case("zarr2", "<u2", (2, 16, 16), {**_ZARR2, "compressors": None}), False),
    "zarr3-zstd": (
        Case("zarr3", "<u2", (2, 16, 16), {"shards": None, "compressors": ZstdCodec(checksum=True)}),
        True,
    ),
    "zarr3-gzip": (Case("zarr3", "<u2", (2, 16, 16), {"shards": None, "compressors": GzipCodec()}), True),
    "zarr3-blosc": (Case("zarr3", "<u2", (2, 16, 16), {"shards": None, "compressors": BloscCodec()}), False),
    "zarr3-sharded": (
        Case("zarr3", "<u2", (2, 16, 16), {"shards": (2, 2, 2), "compressors": Crc32cCodec()}),
        True,
    ),
    "n5-gzip": (
        Case("tensorstore", "<u2", (2, 16, 16), {**_N5, "metadata": {"compression": {"type": "gzip"}}}),
        True,
    ),
    "n5-xz": (
        Case("tensorstore", "<u2", (2, 16, 16), {**_N5, "metadata": {"compression": {"type": "xz"}}}),
        True,
    ),
    "tiff-deflate": (Case("tiff", "<u2", (2, 16, 16), {**_TIFF, "compression": "deflate"}), True),
    "tiff-tiled": (Case("tiff", "<u2", (1, 1, 1), {**_TIFF, "tile": True, "compression": "zstd"}), False),
    "tiff-plain": (Case("tiff", "<u2", (2, 16, 16), {**_TIFF, "compression": None, "bigtiff": True}), False),
    "tiff-ome": (
        Case(
            "tiff",
            "<u2",
            (2, 16, 16),
            {**_TIFF, "compression": "lzw", "ome": True, "metadata": {"axes": "ZYX"}},
        ),
        False,
    ),
    "npy": (Case("npy", "<u2", (2, 16, 16), {"order": "F"}), False),
    "folder": (Case("folder", "<u2", (2, 16, 16), {"suffix": ".png"}), True),
}


def variants_of(kind: str) -> list[str]:
    return [name for name, (case, _) in VARIANTS.items() if case.kind == kind]


def guarded(kind: str, file: Path) -> list[tuple[int, int]]:
    """The ranges of a file that a checksum guards, where chunks have one."""
    if kind == "hdf5":
        with h5py.File(file) as opened:
            array = opened["group/raw"]
            if array.chunks is None:
                return []
            infos = [array.id.get_chunk_info(i) for i in range(array.id.get_num_chunks())]
        return [(info.byte_offset, info.byte_offset + info.size) for info in infos]
    if kind == "tiff":
        with tifffile.TiffFile(file) as opened:
            spans = [zip(page.dataoffsets, page.databytecounts, strict=True) for page in opened.pages]
        return [(offset, offset + size) for span in spans for offset, size in span]
    if file.suffix == ".json" or file.name.startswith(".z"):
        return []
    # The header of an N5 block and the signature of a PNG have none.
    skipped = {"tensorstore": 16, "folder": 8}.get(kind, 0)
    return [(skipped, file.stat().st_size)]


def damage(folder: Path, rng: random.Random, kind: str) -> tuple[Path, str, bool]:
    """Cut, alter or remove one file; returns it, what was done, and whether a checksum guards the place."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    metadata = [p for p in files if p.suffix == ".json" or p.name.startswith(".z")]
    file = rng.choice(metadata if metadata and rng.random() < 0.4 else files)
    content = bytearray(file.read_bytes())
    spans = guarded(kind, file)
    how = rng.choice(["cut", "flip", "flip", "flip", "zeros", "noise"])
    # Headers are short: half of the damages go to the ends of the file.
    place = (
        rng.randrange(len(content))
        if rng.random() < 0.5
        else min(int(rng.expovariate(1 / 200)), len(content) - 1)
    )
    if rng.random() < 0.25:
        place = len(content) - 1 - place
    if how == "cut":
        file.write_bytes(content[:place])
        return file, f"cut at {place}", any(place < stop for _, stop in spans)
    length = 1 if how == "flip" else rng.randint(2, 40)
    end = min(place + length, len(content))
    for at in range(place, end):
        new = {"flip": content[at] ^ (1 << rng.randrange(8)), "zeros": 0, "noise": rng.randrange(256)}
        content[at] = new[how]
    file.write_bytes(content)
    return file, f"{how} {place}:{end}", any(start <= place and end <= stop for start, stop in spans)


def read(path: str) -> np.ndarray:
    volume = open_volume(path)
    # A damaged shape may be of any size: read what should be there, no more.
    return volume.read((0, 0, 0), [min(a, b) for a, b in zip(volume.shape, SHAPE, strict=True)])[0]


def run(folder: Path, variant: str, first: int, last: int) -> tuple[int, int]:
    case, is_guarded = VARIANTS[variant]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "whole").mkdir()
    path = write(folder / "whole", case, ARRAY)
    assert np.array_equal(read(path), ARRAY)
    named = harmless = 0
    for seed in range(first, last):
        shutil.rmtree(folder / "hurt", ignore_errors=True)
        shutil.copytree(folder / "whole", folder / "hurt")
        file, what, is_covered = damage(folder / "hurt", random.Random(seed), case.kind)
        print(f"{variant} {seed}: {file.name} {what}", file=sys.stderr, flush=True)
        signal.alarm(30)
        try:
            found = read(path.replace("/whole/", "/hurt/"))
        except InputError as error:
            message = str(error)
            named += 1
        else:
            is_same = found.shape == SHAPE and np.array_equal(found, ARRAY)
            assert is_same or not (is_guarded and is_covered), "silently read something else"
            harmless += 1
            continue
        assert str(folder) in message, f"the file is not named: {message}"
    return named, harmless


if __name__ == "__main__":
    faulthandler.enable()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), resource.RLIM_INFINITY))
    if not variants_of(sys.argv[2]):
        sys.exit(f"KIND must be one of {', '.join({case.kind: 0 for case, _ in VARIANTS.values()})}")
    for variant in variants_of(sys.argv[2]):
        print(variant, *run(Path(sys.argv[1]) / variant, variant, int(sys.argv[3]), int(sys.argv[4])))
