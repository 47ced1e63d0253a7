# SPDX-License-Identifier: BSD-3-Clause
"""Interior and boundary of objects, box by box, against a loop over voxels."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile

from fastseg.data.cache import ChunkCache
from fastseg.data.object_parts import PartsVolume
from fastseg.errors import InputError
from fastseg.methods.config_file import parse_config
from fastseg.train.inputs import open_annotated
from tests.data.scenes import stored
from tests.project import fastseg

RNG = np.random.default_rng(0)
# Objects of several voxels, some of which touch, and background.
IDS = np.kron(RNG.integers(0, 4, (3, 4, 4)), np.ones((3, 4, 3), int)).astype(np.int16)[:8, :14]
KNOWN = RNG.random(IDS.shape) > 0.1


def by_hand(width: tuple[int, int, int], known: np.ndarray, ignore: int | None = None) -> np.ndarray:
    found = np.zeros(IDS.shape, np.int64)
    for place in np.ndindex(IDS.shape):
        own = IDS[place]
        found[place] = ignore if own == ignore else own != 0
        if own in (0, ignore):
            continue
        for axis, step in itertools.product(range(3), range(-3, 4)):
            other = list(place)
            other[axis] += step
            inside = 0 <= other[axis] < IDS.shape[axis]
            if (
                inside
                and abs(step) <= width[axis]
                and known[tuple(other)]
                and IDS[tuple(other)] not in (own, ignore)
            ):
                found[place] = 2
    return found


@pytest.mark.parametrize("width", [(1, 1, 1), (0, 2, 1), (3, 0, 0)])
@pytest.mark.parametrize("ignore", [None, 3])
def test_every_box_holds_what_the_whole_holds(
    tmp_path: Path, width: tuple[int, int, int], ignore: int | None
) -> None:
    labels, mask = stored(tmp_path, "ids", IDS), stored(tmp_path, "mask", KNOWN.astype("u1"))
    for known, volume in ((np.ones_like(KNOWN), None), (KNOWN, mask)):
        parts = PartsVolume(labels, width, volume, ignore)
        expected = by_hand(width, known, ignore)
        assert {1, 2} <= {*np.unique(expected)}
        assert np.array_equal(parts[:][0], expected)
        for _ in range(20):
            start = [int(RNG.integers(n)) for n in IDS.shape]
            stop = [int(RNG.integers(a + 1, n + 1)) for a, n in zip(start, IDS.shape, strict=True)]
            box = expected[tuple(map(slice, start, stop))]
            out = np.empty((1, *box.shape), np.int64)
            assert np.array_equal(parts.read(start, stop)[0], box)
            assert np.array_equal(pickle.loads(pickle.dumps(parts)).read(start, stop, out)[0], box)
            assert np.array_equal(out[0], box)
        assert np.array_equal(parts.with_cache(ChunkCache(1 << 20))[:][0], expected)
    # A crop is a volume of its own: beyond it nothing is known.
    part = PartsVolume(labels, width, None, ignore).crop((2, 3, 1), (8, 14, 9))
    again = PartsVolume(stored(tmp_path, "cut", IDS[2:8, 3:14, 1:9].copy()), width, None, ignore)
    assert np.array_equal(part[:], again[:])


def settings(tmp_path: Path, **data: object) -> object:
    stored(tmp_path, "raw", IDS)
    stored(tmp_path, "ids", IDS)
    entry = {"raw": f"{tmp_path}/raw.npy", "labels": f"{tmp_path}/ids.npy", **data.pop("entry", {})}  # type: ignore[dict-item]
    values = {"train": [entry], "patch": [16, 16, 16], "classes": ["interior", "boundary"], **data}
    return parse_config(
        {"method": "supervised", "output": f"{tmp_path}/run", "data": values}, "run.yaml"
    ).data


def test_targets_are_the_parts(tmp_path: Path) -> None:
    data = settings(tmp_path, boundary=[0, 2, 1])
    target, codes = open_annotated(data.train[0], data).read_target((0, 0, 0), IDS.shape)
    expected = by_hand((0, 2, 1), np.ones_like(KNOWN))
    assert np.array_equal(target, [expected == 1, expected == 2])
    assert (codes == 1).all()


@pytest.mark.parametrize("patch", [[16, 16], [16, 16, 16]])
def test_what_lies_between_annotated_slices_makes_no_boundary(tmp_path: Path, patch: list[int]) -> None:
    entry = {"annotated": {"axis": "z", "slices": [1, 5]}} if len(patch) == 3 else {}
    data = settings(tmp_path, entry=entry, patch=patch)
    target, _ = open_annotated(data.train[0], data).read_target((1, 0, 0), (2, *IDS.shape[1:]))
    assert np.array_equal(target[1], by_hand((0, 1, 1), np.ones_like(KNOWN))[1:2] == 2)


@pytest.mark.long
def test_from_numbered_cells_to_numbered_cells(tmp_path: Path) -> None:
    """The classes are named, validated and written, and instances are cut along the boundaries."""
    y, x = np.mgrid[:96, :96]
    cells = (1 + x // 12 + 8 * (y // 12)).astype("u1")  # all of them touch
    cells[:, 90:] = 0
    raw = np.full((96, 96), 150, "u1")
    raw[1:] -= (cells[1:] != cells[:-1]).astype("u1") * 100
    raw[:, 1:] -= ((cells[:, 1:] != cells[:, :-1]) & (raw[:, 1:] > 100)).astype("u1") * 100
    raw[cells == 0] = 0
    tifffile.imwrite(tmp_path / "raw.tif", raw)
    tifffile.imwrite(tmp_path / "cells.tif", cells)
    (tmp_path / "run.yaml").write_text(
        """
method: supervised
output: run
data:
  train: [{raw: raw.tif, labels: cells.tif}]
  validation: [{raw: raw.tif, labels: cells.tif}]
  test: [{raw: raw.tif, labels: cells.tif}]
  classes: {cell: interior, edge: boundary}
  patch: [64, 64]
network: {width: 4, pooling: [[2, 2]]}
train: {steps: 60, batch: 2, learning_rate: 0.02, device: cpu, precision: fp32, validate_every: 30}
"""
    )
    run = tmp_path / "run"
    done = fastseg("train", tmp_path / "run.yaml", f"output={run}")
    assert done.returncode == 0, done.stderr
    for command in ("predict", "evaluate"):
        done = fastseg(command, run)
        assert done.returncode == 0, done.stderr
    assert "class edge" in done.stdout
    common = ("predict", run, "--raw", tmp_path / "raw.tif", "--output")
    for what, options in (
        ("labels", ()),
        ("instances", ()),
        ("instances", ("--set", "predict.instances=components")),
    ):
        name = f"{what}{len(options)}.tif"
        done = fastseg(*common, tmp_path / name, "--what", what, *options)
        assert done.returncode == 0, done.stderr
    labels, objects, merged = (
        tifffile.imread(tmp_path / f"{n}.tif") for n in ("labels0", "instances0", "instances2")
    )
    assert {*np.unique(labels)} == {0, 1, 2}
    assert np.array_equal(objects > 0, labels > 0)
    # Nearly each cell is an object of its own, more than without boundaries.
    cores = (cells > 0) & (y % 12 > 3) & (y % 12 < 9) & (x % 12 > 3) & (x % 12 < 9)
    numbers = [np.bincount(objects[cores & (cells == cell)]).argmax() for cell in np.unique(cells[cells > 0])]
    assert len({*numbers}) > 0.7 * len(numbers)
    assert merged.max() < objects.max()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    for data, message in (
        ({"classes": ["interior", 1]}, "or parts of objects, interior and boundary"),
        ({"classes": {"cell": "outside"}}, "or parts of objects, interior and boundary"),
        ({"boundary": [1, 1]}, "a width in voxels or one per axis"),
        ({"boundary": [0, 0, 0]}, "a width in voxels or one per axis"),
    ):
        with pytest.raises(InputError, match=message):
            settings(tmp_path, **data)
    across = settings(tmp_path, boundary=[1, 0, 0], entry={"annotated": {"axis": "z", "slices": [1]}})
    with pytest.raises(InputError, match=r"across the annotated slices of .* nothing is known"):
        open_annotated(across.train[0], across)
    with pytest.raises(InputError, match=r"predict\.instances: boundary needs data.classes"):
        parse_config(
            {
                "output": "run",
                "data": {"train": [{"raw": "a"}], "patch": [64, 64]},
                "predict": {"instances": "boundary"},
            },
            "run.yaml",
        )
