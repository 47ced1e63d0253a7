# SPDX-License-Identifier: BSD-3-Clause
"""Volumes at another voxel size: every value by its definition, and the same in any box, crop, cache and part."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastseg.data import resampled as module
from fastseg.data.annotations import AnnotatedVolume, Annotation
from fastseg.data.cache import ChunkCache
from fastseg.data.resampled import ResampledVolume, resampled, resampled_annotated
from fastseg.data.volumes import Volume, open_volume
from fastseg.errors import InputError
from tests.data.scenes import sizes_read, stored

SHAPE = (9, 14, 23)
RATIOS = [(2.0, 1.0, 3.0), (0.5, 1.7, 1.0), (1.3, 0.31, 2.5), (4.2, 7.9, 0.2), (1.0, 1.0, 0.999)]


def by_definition(array: np.ndarray, ratio: float, axis: int, nearest: bool) -> np.ndarray:
    """One axis, voxel by voxel, in float64."""
    lines = np.moveaxis(array.astype(np.float64), axis, -1)
    size = lines.shape[-1]
    values = []
    for i in range(max(1, math.floor(size / ratio + 0.5))):
        middle = (i + 0.5) * ratio
        if nearest:
            values.append(lines[..., min(int(middle), size - 1)])
        elif ratio <= 1:
            values.append(
                np.array(
                    [np.interp(middle, np.arange(size) + 0.5, line) for line in lines.reshape(-1, size)]
                ).reshape(lines.shape[:-1])
            )
        else:
            parts = [max(min(j + 1, (i + 1) * ratio) - max(j, i * ratio), 0.0) for j in range(size)]
            values.append((lines * parts).sum(-1) / sum(parts))
    return np.moveaxis(np.stack(values, -1), -1, axis)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Volume]:
    folder, rng = tmp_path_factory.mktemp("resampled"), np.random.default_rng(0)
    arrays = {
        "u2": rng.integers(0, 65536, SHAPE).astype("u2"),
        "f4": rng.normal(size=(2, *SHAPE)).astype("f4"),
        "f8": rng.normal(size=SHAPE),
    }
    with h5py.File(folder / "a.h5", "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=(*array.shape[:-3], 4, 5, 6), compression="gzip")
            file[name].attrs["element_size_um"] = (0.04, 0.01, 0.01)
    return {name: open_volume(f"{folder}/a.h5:/{name}") for name in arrays}


@pytest.mark.parametrize("nearest", [False, True], ids=["raw", "labels"])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", ["u2", "f4", "f8"])
def test_values_are_those_of_the_definition(
    volumes: dict[str, Volume], name: str, ratio: tuple[float, float, float], nearest: bool
) -> None:
    volume = volumes[name]
    other = ResampledVolume(volume, ratio, nearest=nearest)
    expected = volume[:].astype(np.float64)
    for axis in range(3):
        expected = by_definition(expected, ratio[axis], axis + 1, nearest)
    found = other[:]
    assert found.dtype == volume.dtype
    assert found.shape == expected.shape == (volume.channels, *other.shape)
    if nearest:
        assert np.array_equal(found, expected)
    else:
        # Integers are rounded once, after all axes; single precision has 24 bits.
        within = {"u2": 0.5 + 65536 * 2e-6, "f4": 4e-6, "f8": 1e-13}[name]
        assert np.abs(found - expected).max() <= within


@given(data=st.data())
def test_any_box_is_that_of_the_whole(volumes: dict[str, Volume], data: st.DataObject) -> None:
    ratio = data.draw(st.tuples(*[st.one_of(st.sampled_from([1.0, 2.0, 0.5]), st.floats(0.13, 7.9))] * 3))
    nearest = data.draw(st.booleans())
    other = ResampledVolume(volumes[data.draw(st.sampled_from(["u2", "f4", "f8"]))], ratio, nearest=nearest)
    whole = other[:]

    def box(shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
        low = [data.draw(st.integers(0, n - 1)) for n in shape]
        return low, [data.draw(st.integers(a + 1, n)) for a, n in zip(low, shape, strict=True)]

    low, high = box(other.shape)
    inside = (slice(None), *map(slice, low, high))
    most = data.draw(st.sampled_from([1, 40, 1 << 24]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST_STORED", most)
        assert np.array_equal(other.read(low, high), whole[inside])
        cropped = pickle.loads(pickle.dumps(other.crop(low, high).with_cache(ChunkCache(1 << 16))))
        assert np.array_equal(cropped[:], whole[inside])
        start, stop = box(cropped.shape)
        out = np.zeros((other.channels, *np.subtract(stop, start)), other.dtype)
        assert cropped.read(start, stop, out) is out
        assert np.array_equal(out, whole[inside][(slice(None), *map(slice, start, stop))])


def test_halving_is_the_mean_of_eight_and_constants_stay(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (4, 6, 8)).astype("u1")
    halved = ResampledVolume(stored(tmp_path, "a", array), (2.0, 2.0, 2.0))[:][0]
    means = array.reshape(2, 2, 3, 2, 4, 2).mean(axis=(1, 3, 5))
    assert np.array_equal(halved, np.rint(means))
    flat = stored(tmp_path, "flat", np.full((5, 7, 11), 65535, "u2"))
    for ratio in RATIOS:
        assert (ResampledVolume(flat, ratio)[:] == 65535).all()


def test_sizes_places_and_blocks(volumes: dict[str, Volume]) -> None:
    volume = volumes["u2"].crop((2, 3, 4), SHAPE)
    other = resampled(volume, (None, 0.02, 0.005))
    assert isinstance(other, ResampledVolume)
    assert other.shape == (7, 6, 38)  # 11 / 2 is rounded up, as 5.5 voxels are not 5
    assert other.voxel_size == pytest.approx((0.04, 0.02, 0.005))
    assert other.origin == (2, 2, 8)  # 1.5 is rounded to even
    assert other.chunks == (4, 2, 12)
    assert other.name == volume.name
    cropped = other.crop((1, 2, 3), (4, 5, 6))
    assert (cropped.shape, cropped.origin) == ((3, 3, 3), (3, 4, 11))
    large = ResampledVolume(volume, (4.0, 4.0, 4.0))
    assert len(list(large.blocks(64 * 2))) > len(list(large.blocks(64 * 100)))
    with pytest.raises(InputError, match="the range z 0:8 must lie within 0:7"):
        other.crop((0, 0, 0), (8, 1, 1))
    assert resampled(volume, (0.04, 0.01, 0.010004)) is volume  # as good as the same
    assert resampled(volume, (None, None, None)) is volume


def test_large_boxes_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = stored(tmp_path, "a", np.zeros((64, 64, 64), "u1"))
    sizes = sizes_read(monkeypatch)
    monkeypatch.setattr(module, "_MOST_STORED", 4096)
    ResampledVolume(volume, (4.0, 4.0, 4.0))[:]
    assert max(sizes) <= 4096


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("ratio", [2.0, 3.0, 1.37, 0.5, 0.7, 5.1])
def test_annotated_slices_stay_annotated_with_their_own_labels(
    tmp_path: Path, axis: int, ratio: float
) -> None:
    size, first = 40, 3
    number = np.arange(size) + 100
    labels = np.broadcast_to(number.reshape([-1 if a == axis else 1 for a in range(3)]), (size,) * 3)
    raw, truth = (
        stored(tmp_path, "raw", np.zeros((size,) * 3, "u1")),
        stored(tmp_path, "y", labels.astype("u1")),
    )
    low = [first if a == axis else 0 for a in range(3)]
    raw.voxel_size = (1.0, 1.0, 1.0)
    raw, truth = raw.crop(low, (size,) * 3), truth.crop(low, (size,) * 3)
    slices = (4, 11, 12, 30)  # numbers of the file
    volume = AnnotatedVolume(raw, truth, annotation=Annotation(axis, slices), as_ids=True)
    voxel = [ratio if a == axis else None for a in range(3)]
    other = resampled_annotated(volume, voxel)
    target, codes = other.read_target((0, 0, 0), other.shape)
    along = tuple(0 if a != axis else slice(None) for a in range(3))
    seen, known = target[0][along], codes[0][along] == 1
    # What is annotated has the labels of annotated slices, and each of these is there, unless another is in its place.
    assert set(seen[known]) <= {s + 100 for s in slices}
    places = {int((s - first + 0.5) / ratio) for s in slices}
    assert places <= set(np.flatnonzero(known))
    for s in slices:
        nearest = min(
            slices, key=lambda t: abs((t - first + 0.5) / ratio - int((s - first + 0.5) / ratio) - 0.5)
        )
        assert seen[int((s - first + 0.5) / ratio)] == nearest + 100
    if ratio < 1:
        middle = first + (np.arange(len(known)) + 0.5) * ratio
        assert np.array_equal(known, np.isin(np.floor(middle), slices))
    else:
        assert known.sum() == len(places)
    for start, stop in ((0, 3), (2, 5)):
        box = [[start if a == axis else 0 for a in range(3)], [stop if a == axis else 1 for a in range(3)]]
        part = other.read_target(*box)
        assert np.array_equal(part[0][0].ravel(), seen[start:stop])
        assert np.array_equal(part[1][0].ravel() == 1, known[start:stop])


def test_masks_go_by_the_nearest_voxel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = stored(tmp_path, "raw", rng.integers(0, 255, SHAPE).astype("u1"))
    raw.voxel_size = (1.0, 1.0, 1.0)
    mask, labels = (stored(tmp_path, n, rng.integers(0, 3, SHAPE).astype("u1")) for n in ("mask", "labels"))
    other = resampled_annotated(AnnotatedVolume(raw, labels, mask, classes=(1, 2)), (2.0, None, 0.5))
    target, codes = other.read_target((0, 0, 0), other.shape)
    index = np.ix_(
        [min(int((i + 0.5) * 2), 8) for i in range(5)], range(14), [int((i + 0.5) / 2) for i in range(46)]
    )
    assert np.array_equal(codes[0], mask[:][0][index])
    assert np.array_equal(target, np.stack([labels[:][0][index] == c for c in (1, 2)]))


def test_refusals(volumes: dict[str, Volume], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"states none: add voxel_size: \[z, y, x\] to its entry"):
        resampled(stored(tmp_path, "bare", np.zeros(SHAPE, "u1")), (1.0, 1.0, 1.0))
    with pytest.raises(
        InputError, match=r"data.voxel_size: 10 along y is 1e\+03 times the 0.01 of .*a.h5:/u2"
    ):
        resampled(volumes["u2"], (0.04, 10.0, 0.01))
    with pytest.raises(InputError, match="must be from 1/8 to 8 times it: sizes are in micrometres"):
        resampled(volumes["u2"], (0.004, 0.01, 0.01))
    bad = np.zeros(SHAPE, "f4")
    bad[7, 6, 5] = np.nan
    with pytest.raises(InputError, match=r"holds nan at \(z, y, x\) = \(7, 6, 5\)"):  # of the file
        ResampledVolume(stored(tmp_path, "nan", bad).crop((3, 3, 3), SHAPE), (2.0, 2.0, 2.0))[:]
