# SPDX-License-Identifier: BSD-3-Clause
"""The loops of the data path in C++ against their definitions in numpy."""

import threading
from collections.abc import Callable

import numpy as np
import pytest

from fastseg import _C
from fastseg.data.annotations import _Reservoir
from fastseg.data.histogram import Lookup
from fastseg.metrics import Confusion, count_confusion

SIZES = (0, 1, 63, 64, 65, 1000, 64 * 255, 64 * 256 + 17)


def masks_of(size: int, share: float, count: int = 3) -> np.ndarray:
    """(count, size) uint8 with any byte where something is marked."""
    rng = np.random.default_rng(size)
    return rng.integers(1, 256, (count, size), np.uint8) * (rng.random((count, size)) < share)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_confusion(size: int, share: float) -> None:
    prediction, target, valid = masks_of(size, share)
    for inside in (None, valid):
        kept = np.ones(size, bool) if inside is None else inside != 0
        p, t = prediction[kept] != 0, target[kept] != 0
        expected = (kept.sum(), t.sum(), p.sum(), (p & t).sum())
        assert _C.count_confusion(prediction, target, inside) == expected


def test_confusion_of_any_dtype_and_strides() -> None:
    """Not a number is not 0, -0.0 is; valid is broadcast."""
    rng = np.random.default_rng(0)
    prediction = rng.choice([0.0, -0.0, 0.25, np.nan, -3.0], (5, 7, 9))[:, ::-2, ::2]
    target = rng.integers(-2, 2, (9, 7, 5), np.int64).transpose(2, 1, 0)[:, ::-2, ::2]
    valid = rng.random((1, 4, 5)) < 0.5
    p, t = (np.where(valid, a != 0, False) for a in (prediction, target))
    both = int((p & t).sum())
    expected = Confusion(both, int(p.sum()) - both, int(t.sum()) - both, int(5 * valid.sum() - (p | t).sum()))
    assert count_confusion(prediction, target, valid) == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_find_marked(size: int, share: float) -> None:
    codes, target, _ = masks_of(size, share)
    for also in (None, target):
        marked = codes != 0 if also is None else (codes != 0) & (also != 0)
        places = np.flatnonzero(marked)
        for step in (1, 7, 64, 1000, 5000):
            ranks = np.arange(0, len(places), step)
            found, count = _C.find_marked(codes, also, np.append(ranks, [len(places), len(places) + 9]))
            assert count == len(places)
            assert np.array_equal(found, [*places[ranks], size, size])
        assert _C.find_marked(codes, also, ranks[:0])[1] == len(places)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [0, 5, 1001, (1 << 16) + 3, 300_001])
def test_levels(dtype: type, size: int) -> None:
    levels = np.iinfo(dtype).max + 1
    values = np.random.default_rng(0).integers(0, levels, size).astype(dtype)
    values[: size // 2] = 7  # as of a background, whose count waits for itself
    counts = np.arange(levels)
    _C.count_levels(values, counts)
    assert np.array_equal(counts, np.arange(levels) + np.bincount(values, minlength=levels))
    values[1::4] = values[::4][: len(values[1::4])]  # some of those that stand together are equal
    counts = np.zeros(levels, np.int64)
    _C.count_levels(values[1:], counts)
    assert np.array_equal(counts, np.bincount(values[1:], minlength=levels))
    table = np.random.default_rng(1).permutation(levels).astype(dtype)
    expected = table[values]
    _C.map_levels(values, table, values)  # in place
    assert np.array_equal(values, expected)


def test_a_lookup_takes_any_strides() -> None:
    lookup = Lookup(np.array([0.0, 255.0]), np.array([0.0, 510.0]))
    raw = np.arange(120, dtype=np.uint8).reshape(2, 3, 4, 5).transpose(0, 3, 2, 1)[:, ::-1, 1::2]
    assert np.array_equal(lookup(raw), raw * 2)


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (3, 4, 5, 6), (2, 1, 3, 1030), (1, 0, 2, 3)])
def test_blend(shape: tuple[int, ...]) -> None:
    """Into a part of a larger mean, from a part of larger values; the weight of a first window is 1."""
    rng = np.random.default_rng(0)
    channels, depth, height, width = shape
    whole = rng.normal(size=(channels, depth + 2, height + 1, width + 3)).astype(np.float32)
    tile = rng.normal(size=(channels, depth + 1, height + 2, width + 2)).astype(np.float32)
    mean, values = (
        whole[:, 1 : 1 + depth, :height, 2 : 2 + width],
        tile[:, :depth, 1 : 1 + height, 1 : 1 + width],
    )
    shares = [rng.gamma(0.5, 2, n).astype(np.float32) for n in (depth, height, height, width, width)]
    before_z, before_y, total_y, before_x, total_x = (share.astype(np.float64) for share in shares)
    if depth:
        before_z[:1] = shares[0][:1] = 0
    others = before_y + total_y * before_z[:, None]
    weight = 1 / (1 + before_x + others[..., None] * total_x)
    before = whole.copy()
    expected = before.astype(np.float64)
    expected[:, 1 : 1 + depth, :height, 2 : 2 + width] += weight * (values - mean.astype(np.float64))
    _C.blend_tile(mean, values, *shares)
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-6)
    outside = np.ones(whole.shape, bool)
    outside[:, 1 : 1 + depth, :height, 2 : 2 + width] = False
    assert np.array_equal(whole[outside], before[outside])


def test_blending_equal_values_and_a_first_tile_is_exact() -> None:
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 50)).astype(np.float32)
    shares = [np.random.default_rng(1).random(n, np.float32) for n in (3, 4, 4, 50, 50)]
    mean = values.copy()
    _C.blend_tile(mean, values, *shares)
    assert np.array_equal(mean, values)
    mean = np.random.default_rng(2).normal(size=values.shape).astype(np.float32)
    _C.blend_tile(mean, values, *map(np.zeros_like, shares))
    assert np.array_equal(mean, values)


def stream_of(reservoir: _Reservoir, shape: tuple[int, ...], step: int) -> np.ndarray:
    for low in range(0, shape[0], step):
        high = min(low + step, shape[0])
        reservoir.add(np.ones((high - low, *shape[1:]), np.uint8), None, (low, 0, 0))
    return reservoir.positions


def test_few_positions_are_all_kept_in_order() -> None:
    found = stream_of(_Reservoir(np.random.default_rng(0), 60), (3, 4, 5), 2)
    assert np.array_equal(found, np.argwhere(np.ones((3, 4, 5))))


def test_positions_do_not_depend_on_how_the_stream_is_cut() -> None:
    alone, cut = (stream_of(_Reservoir(np.random.default_rng(0), 50), (60, 20, 9), step) for step in (60, 7))
    assert np.array_equal(alone, cut)
    assert len(np.unique(alone, axis=0)) == 50


def test_every_position_is_as_likely() -> None:
    """100 samples of 200 of 1,000: each is in 20 of them; chi-squared of all, and of the planes of the stream."""
    counts = np.zeros(1000)
    for seed in range(100):
        found = stream_of(_Reservoir(np.random.default_rng(seed), 200), (10, 10, 10), 10)
        np.add.at(counts, found @ (100, 10, 1), 1)
    chi_squared = ((counts - 20) ** 2 / (20 * 0.8)).sum()
    assert abs(chi_squared - 999) < 5 * np.sqrt(2 * 999)
    assert np.abs(counts.reshape(10, 100).sum(1) - 2000).max() < 5 * np.sqrt(2000 * 0.8 * 0.9)


BYTES, FLOATS = np.zeros(8, np.uint8), np.zeros(2, np.float32)
MEAN = np.zeros((1, 2, 2, 2), np.float32)
READ_ONLY = np.zeros(256, np.int64)
READ_ONLY.setflags(write=False)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _C.count_confusion(FLOATS, BYTES, None), TypeError, r"prediction must be of uint8, got \(2,\) of"),
        (lambda: _C.count_confusion(BYTES, BYTES[:4], None), ValueError, r"target must have 8 values, got \(4,\)"),
        (lambda: _C.count_confusion(BYTES[::2], BYTES[:4], None), ValueError, "prediction must be contiguous"),
        (lambda: _C.count_confusion(BYTES, BYTES, BYTES[:1]), ValueError, "valid must have 8 values"),
        (lambda: _C.count_confusion([1], BYTES, None), TypeError, "incompatible function arguments"),
        (lambda: _C.find_marked(BYTES, FLOATS, np.array([0])), TypeError, "target must be of uint8"),
        (lambda: _C.find_marked(BYTES + 1, None, np.array([3, 1])), ValueError, "ranks must rise"),
        (lambda: _C.find_marked(BYTES + 1, None, np.array([-1])), ValueError, "ranks must rise"),
        (lambda: _C.find_marked(BYTES, None, FLOATS), TypeError, "ranks must be of int64"),
        (lambda: _C.count_levels(BYTES, np.zeros(255, np.int64)), ValueError, "counts must have 256 values"),
        (lambda: _C.count_levels(BYTES, READ_ONLY), ValueError, "counts must be writeable"),
        (lambda: _C.count_levels(FLOATS, READ_ONLY), TypeError, "values must be of uint16"),
        (lambda: _C.map_levels(BYTES, np.zeros(256, np.uint16), BYTES), TypeError, "table must be of uint8"),
        (lambda: _C.map_levels(BYTES, np.zeros(256, np.uint8), BYTES[1:]), ValueError, "out must have 8 values"),
        (lambda: _C.blend_tile(MEAN, MEAN[:, 1:], *[FLOATS] * 5), ValueError, "values must have the shape of mean"),
        (lambda: _C.blend_tile(MEAN, MEAN, *[FLOATS] * 4, FLOATS[1:]), ValueError, "total_x must have 2 values"),
        (lambda: _C.blend_tile(MEAN, MEAN.swapaxes(2, 3), *[FLOATS] * 5), ValueError, "contiguous along x"),
        (lambda: _C.blend_tile(MEAN[0], MEAN[0], *[FLOATS] * 5), ValueError, r"\(channels, z, y, x\)"),
        (lambda: _C.blend_tile(MEAN, MEAN.astype("f8"), *[FLOATS] * 5), TypeError, "values must be of float32"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_other_threads_run_meanwhile() -> None:
    """Without the lock released, this thread's first step would wait for the whole call of the other."""
    values, table = np.zeros(1 << 26, np.uint8), np.zeros(256, np.uint8)
    began, steps = threading.Event(), 0

    def call() -> None:
        began.set()
        _C.map_levels(values, table, values)

    thread = threading.Thread(target=call)
    thread.start()
    began.wait()
    while thread.is_alive():
        steps += 1
    thread.join()
    assert steps > 1000
