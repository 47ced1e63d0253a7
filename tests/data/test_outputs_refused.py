# SPDX-License-Identifier: BSD-3-Clause
"""Outputs that cannot be begun: unusable targets, and calls that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastseg.data.outputs import ArraySpec, open_output
from fastseg.errors import InputError
from tests.data.test_outputs import ARRAY, BLOCKS, SHAPE, SPEC, write


def test_unusable_targets(tmp_path: Path) -> None:
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "file.zarr").write_text("text")
    (tmp_path / "other.zarr").mkdir()
    (tmp_path / "other.zarr/thesis.tex").write_text("text")
    for name, message in (
        ("folder.h5", "is a folder"),
        ("file.zarr", "is a file"),
        ("other.zarr", "of something else than Zarr"),
        ("file.zarr/v.h5", r"file\.zarr/v\.h5 cannot be written"),
        ("v.tif", "must end in one of"),
    ):
        with pytest.raises(InputError, match=message):
            write(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 3
    assert (tmp_path / "other.zarr/thesis.tex").exists()


def test_misuse_is_named(tmp_path: Path) -> None:
    path = tmp_path / "v.zarr"
    sharded = {"raw": ArraySpec(SHAPE, "u2", (4, 4, 4), (16, 24, 28))}
    for arrays, blocks, message in (
        (SPEC, BLOCKS[:2], r"blocks must tile the volume \(20, 24, 28\) once"),
        (SPEC, [((0, 0, 0), (9, 24, 28)), ((9, 0, 0), SHAPE)], r"raw's chunks or shards \(8, 8, 8\)"),
        (sharded, BLOCKS, r"raw's chunks or shards \(16, 24, 28\)"),
        ({"../raw": SPEC["raw"]}, None, r"words joined by /, got '\.\./raw'"),
        ({"raw": ArraySpec(SHAPE, "c8", (8, 8, 8))}, None, "got complex64"),
        ({"raw": ArraySpec(SHAPE, "u1", (8, 8))}, None, "alike"),
        ({"raw": ArraySpec(SHAPE, "u1", (8, 8, 8), (12, 8, 8))}, None, "shards multiples of chunks"),
        ({**SPEC, "two": ArraySpec((8, 8, 8), "u1", (8, 8, 8))}, None, r"must agree in \(z, y, x\)"),
        ({}, None, "at least one array"),
    ):
        with pytest.raises(ValueError, match=message):
            open_output(path, arrays, blocks=blocks)
    with pytest.raises(ValueError, match="a barrier for more than one"):
        open_output(path, SPEC, world=2)
    for block, arrays, message in (
        (((0, 0, 0), SHAPE), {}, "is no block of"),
        (BLOCKS[0], {"row": ARRAY[:8]}, "has no array 'row', it has raw"),
        (BLOCKS[0], {"raw": ARRAY[:7]}, r"raw must be \(8, 24, 28\)"),
        (BLOCKS[0], {"raw": ARRAY[:8].astype("f4")}, "raw must be uint16, got float32"),
    ):
        with pytest.raises(ValueError, match=message), open_output(path, SPEC, blocks=BLOCKS) as output:
            output.write(*block, arrays)
    assert not list(tmp_path.iterdir())
