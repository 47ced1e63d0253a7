# SPDX-License-Identifier: BSD-3-Clause
"""Truncated and damaged files of every format give an InputError that names them: no crash, no hang, no garbage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numcodecs
import numpy as np
import pytest

from fastseg.data.volumes import open_volume
from fastseg.errors import InputError
from tests.data.damage import ARRAY, VARIANTS, variants_of
from tests.data.formats import write

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kind", sorted({case.kind for case, _ in VARIANTS.values()}))
def test_damages_are_named(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    """All variants of a format in a process of their own, which may crash or hang."""
    options = request.config
    count = 5000 if options.getoption("--slow") else 100 if options.getoption("--long") else 20
    command = [sys.executable, "-m", "tests.data.damage", str(tmp_path), kind, "0", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, *_ in results] == variants_of(kind)
    for name, named, harmless in results:
        assert int(named) > count // 5, name
        assert int(named) + int(harmless) == count, name


@pytest.mark.parametrize("variant", ["zarr2-zlib", "zarr3-gzip", "zarr3-sharded", "n5-gzip", "n5-xz"])
def test_an_array_that_is_gone_does_not_pass_for_its_fill_value(tmp_path: Path, variant: str) -> None:
    path = write(tmp_path, VARIANTS[variant][0], ARRAY)
    volume = open_volume(path)
    volume.read((0, 0, 0), (1, 1, 1))
    shutil.rmtree(path.split(":")[0])
    with pytest.raises(InputError, match="held an array when it was opened, and no longer does"):
        volume.read((5, 30, 30), (6, 40, 44))


def _zarr_with(folder: Path, version: int, change: dict) -> str:
    path = write(folder, VARIANTS["zarr2-zlib" if version == 2 else "zarr3-gzip"][0], ARRAY)
    file = folder / "v.zarr/a/raw" / (".zarray" if version == 2 else "zarr.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return path


@pytest.mark.parametrize(
    ("version", "change", "message"),
    [
        (
            2,
            {"compressor": {"id": "pickle"}},
            "codec pickle is not supported; supported are adler32, .*blosc",
        ),
        (2, {"filters": [{"id": "vlen-utf8"}]}, "codec vlen-utf8 is not supported"),
        (2, {"compressor": {"id": "delta", "dtype": "nonsense"}}, "codec delta is not supported"),
        (2, {"dtype": [["a", "<u2"]]}, "is not a number"),
        (2, {"dtype": "<c8"}, "must hold numbers, got dtype complex64"),
        (2, {"chunks": [0, 1, 1]}, "its metadata are damaged"),
        (2, {"chunks": [1, 1]}, "its metadata are damaged"),
        (2, {"shape": [6, -40, 44]}, "its metadata are damaged"),
        (3, {"data_type": "complex64"}, "data type complex64 is not supported"),
        (3, {"chunk_grid": {"name": "rectilinear"}}, "chunk grid rectilinear is not supported"),
        (3, {"codecs": [{"name": "bytes"}, {"name": "future"}]}, "codec future is not supported"),
        (3, {"codecs": [{"name": "vlen-bytes"}]}, "codec vlen-bytes is not supported"),
        (3, {"codecs": []}, "its metadata are damaged"),
        (3, {"storage_transformers": [{}]}, "storage transformers are not supported"),
    ],
)
def test_unsupported_and_impossible_zarr_metadata(
    tmp_path: Path, version: int, change: dict, message: str
) -> None:
    with pytest.raises(InputError, match=rf"v\.zarr:/a/raw .*{message}"):
        open_volume(_zarr_with(tmp_path, version, change))


def test_codecs_of_zarr_run_no_code(tmp_path: Path) -> None:
    """numcodecs' codec pickle would."""
    path = _zarr_with(tmp_path, 2, {"compressor": {"id": "pickle", "protocol": 5}})
    chunk = tmp_path / "v.zarr/a/raw/0.0.0"
    chunk.write_bytes(numcodecs.Pickle().encode(np.array([1], object)))
    with pytest.raises(InputError, match="codec pickle"):
        open_volume(path)[:]


def test_a_chunk_of_the_wrong_size_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, VARIANTS["zarr2-plain"][0], ARRAY)
    chunk = tmp_path / "v.zarr/a/raw/1.2.0"
    chunk.write_bytes(chunk.read_bytes() + b"x")
    with pytest.raises(
        InputError, match=r"chunk \(1, 2, 0\) in .*raw/1\.2\.0 is damaged: it holds 1025 bytes"
    ):
        open_volume(path)[:]
    open_volume(path)[:2]


def test_a_shard_that_ends_early_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, VARIANTS["zarr3-sharded"][0], ARRAY)
    shard = next(p for p in (tmp_path / "v.zarr/a/raw/c").rglob("*") if p.is_file())
    shard.write_bytes(shard.read_bytes()[100:])  # the index stands at the end
    with pytest.raises(
        InputError, match=r"raw/c/\d/\d/\d (ends before chunk|is damaged)|its CRC32C does not agree"
    ):
        open_volume(path)[:]


@pytest.mark.parametrize("name", ["v.zarr", "v.n5"])
def test_archives_and_empty_folders(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(InputError, match=rf"{name} must be a folder"):
        open_volume(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=rf"{name} (needs|has no) a"):
        open_volume(tmp_path / name)


def test_a_loop_of_tiff_pages_ends(tmp_path: Path) -> None:
    path = tmp_path / "v.tif"
    write(tmp_path, VARIANTS["tiff-deflate"][0], ARRAY)
    content = bytearray(path.read_bytes())
    first = int.from_bytes(content[4:8], "little")
    tags = int.from_bytes(content[first : first + 2], "little")
    after = first + 2 + 12 * tags
    content[after : after + 4] = content[4:8]  # the first page follows itself
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"v\.tif"):
        open_volume(path)[:]


@pytest.mark.parametrize(
    ("variant", "change"),
    [
        ("zarr2-zlib", lambda data: data[:-2]),  # all of the values, not all of their checksum
        ("zarr2-zlib", lambda data: data + b"x"),
        ("zarr2-blosc", lambda data: data + b"x"),
        ("zarr2-blosc", lambda data: data[:10]),
    ],
)
def test_compressed_chunks_of_another_length_are_named(
    tmp_path: Path, variant: str, change: Callable[[bytes], bytes]
) -> None:
    path = write(tmp_path, VARIANTS[variant][0], ARRAY)
    chunk = tmp_path / "v.zarr/a/raw/1.2.0"
    chunk.write_bytes(change(chunk.read_bytes()))
    with pytest.raises(InputError, match=r"chunk \(1, 2, 0\) in .*raw/1\.2\.0 is damaged: its"):
        open_volume(path)[:]
