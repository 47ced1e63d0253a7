# SPDX-License-Identifier: BSD-3-Clause
"""Boxes copied from the arrays that they touch: numpy's assignment is the definition, bit for bit."""

from __future__ import annotations

import itertools
import sys
import threading
import time

import numpy as np
import pytest

from fastseg import _C

DTYPES = [np.dtype(name) for name in ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")]


def numbers(dtype: np.dtype, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Of all magnitudes, the extreme ones, signed zeros and, of floats, subnormals, infinities and NaN included."""
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    flat = rng.integers(0, 256, int(np.prod(shape)) * dtype.itemsize, np.uint8).view(dtype)
    extremes = [0, 1, np.inf, -np.inf, np.nan, -0.0] if dtype.kind == "f" else [0, 1, *_limits(dtype)]
    flat[: len(extremes)] = np.array(extremes, dtype)[: flat.size]
    values = flat.reshape(shape)
    if dtype.kind == "f":  # what stands in a NaN is nobody's business
        values = np.where(np.isnan(values), np.array(np.nan, dtype), values)
    return values


def _limits(dtype: np.dtype) -> tuple[int, int]:
    return np.iinfo(dtype).min, np.iinfo(dtype).max


def place(out: np.ndarray, array: np.ndarray, at: tuple[int, ...], nonzero: bool = False) -> None:
    """The definition: what of the array lies within out."""
    low = [max(a, 0) for a in at]
    high = [min(a + n, m) for a, n, m in zip(at, array.shape, out.shape, strict=True)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return
    part = array[tuple(slice(a - p, b - p) for a, b, p in zip(low, high, at, strict=True))]
    out[tuple(map(slice, low, high))] = part != 0 if nonzero else part


@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_casts_are_those_that_numpy_calls_safe(source: np.dtype) -> None:
    rng = np.random.default_rng(0)
    array = numbers(source, (3, 5, 37), rng)
    for target, order, stride in itertools.product(DTYPES, "<>", (1, 2)):
        given = array.astype(source.newbyteorder(order))
        out = np.zeros((3, 5, 37 * stride), target)[..., ::stride]
        if not np.can_cast(source, target, "safe"):
            with pytest.raises(TypeError, match=f"out must hold what arrays of .* do, got {target}"):
                _C.copy_boxes(out, [given], [(0, 0, 0)])
            continue
        _C.copy_boxes(out, [given], [(0, 0, 0)])
        expected = array.astype(target)
        np.testing.assert_array_equal(out, expected)
        assert (np.signbit(out) == np.signbit(expected)).all() or target.kind != "f"


@pytest.mark.parametrize("seed", range(40))
def test_any_strides_and_places(seed: int) -> None:
    """Up to 6 axes; flipped, transposed, with steps, broadcast, unaligned; arrays that reach beyond on any side."""
    rng = np.random.default_rng(seed)
    ndim = int(rng.integers(1, 7))
    shape = tuple(rng.integers(1, 7, ndim))
    source, target = (("u1", "u2"), ("i2", "i2"), ("u4", "f8"), ("f2", "f4"), ("?", "u1"))[seed % 5]

    def view(dtype: str, size: tuple[int, ...]) -> np.ndarray:
        order = rng.permutation(ndim)
        steps = rng.choice([-2, -1, 1, 3], ndim)
        whole = [0] * ndim
        for axis, from_axis in enumerate(order):
            whole[axis] = int(size[from_axis] * abs(steps[from_axis]))
        memory = np.zeros(int(np.prod(whole)) * np.dtype(dtype).itemsize + 1, np.uint8)
        array = memory[1:].view(dtype).reshape(whole).transpose(np.argsort(order))  # unaligned
        return array[tuple(slice(None, None, int(s)) for s in steps)][tuple(slice(0, int(n)) for n in size)]

    out = view(target, shape)
    expected, arrays, places = out.copy(), [], []
    for number in range(int(rng.integers(0, 5))):
        size = tuple(rng.integers(1, 9, ndim))
        array = view(source, size)
        array[...] = numbers(np.dtype(source), size, rng)
        if number == 0:
            array = np.broadcast_to(array[(slice(0, 1),) * ndim], size)
        at = tuple(int(v) for v in rng.integers(-8, 8, ndim))
        place(expected, array, at)
        arrays.append(array)
        places.append(at)
    _C.copy_boxes(out, arrays, places)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.kind != "f"], ids=str)
def test_nonzero(dtype: np.dtype) -> None:
    rng = np.random.default_rng(1)
    array = numbers(dtype, (4, 33), rng) * (rng.random((4, 33)) < 0.5)
    for order, step in itertools.product("<>", (1, 2)):
        out = np.full((4, 33 * step), 7, np.uint8)[:, ::step]
        expected = out.copy()
        given = array.astype(dtype.newbyteorder(order))
        place(expected, given, (-1, 2), nonzero=True)
        _C.copy_boxes(out, [given], [(-1, 2)], nonzero=True)
        np.testing.assert_array_equal(out, expected)


def test_bad_input_is_named_and_changes_nothing() -> None:
    out, array = np.zeros((2, 3), "u1"), np.ones((2, 3), "u1")
    frozen = out.copy()
    frozen.flags.writeable = False
    for error, message, arguments in (
        (TypeError, "out must be numpy arrays, got list", ([[0]], [array], [(0, 0)])),
        (TypeError, "arrays must be numpy arrays, got int", (out, [array, 1], [(0, 0), (0, 0)])),
        (TypeError, "places must be tuples", (out, [array], [[0, 0]])),
        (TypeError, "float", (out, [array], [(0, 0.5)])),
        (ValueError, "places must be as many as arrays, 1, got 2", (out, [array], [(0, 0), (0, 0)])),
        (ValueError, r"have the 2 axes of out, got \(2,\)", (out, [array[:, 0]], [(0, 0)])),
        (ValueError, "have the 2 axes of out, got 3 numbers", (out, [array], [(0, 0, 0)])),
        (ValueError, "places must be below 2\\^62, got 46116", (out, [array], [(0, 2**62)])),
        (ValueError, "out must be writeable", (frozen, [array], [(0, 0)])),
        (ValueError, "out must have at most 8 axes, got 9", (np.zeros((1,) * 9, "u1"), [], [])),
        (TypeError, "arrays must hold bools, integers or floats of up to 8", (out, [array * 1j], [(0, 0)])),
        (TypeError, "floats of up to 8 bytes", (out, [array.astype(np.longdouble)], [(0, 0)])),
        (TypeError, "byte order of this machine", (out.astype(">u2"), [array], [(0, 0)])),
        (
            TypeError,
            "out must be uint8 with nonzero, got uint16",
            (out.astype("u2"), [array], [(0, 0)], True),
        ),
        (TypeError, "integers or bools with nonzero", (out, [array.astype("f4")], [(0, 0)], True)),
    ):
        with pytest.raises(error, match=message):
            _C.copy_boxes(*arguments)
    assert not out.any()
    with pytest.raises(OverflowError):
        _C.copy_boxes(out, [array], [(0, 2**70)])


def test_rows_that_follow_one_another_in_one_array_alone() -> None:
    """Whole rows of a contiguous array, which stand apart in out, and the reverse."""
    array = np.arange(1, 61, dtype="u1").reshape(3, 4, 5)
    for shape, at in itertools.product(
        ((3, 4, 5), (3, 4, 6), (3, 5, 5), (4, 4, 5), (2, 3, 3)), ((0, 0, 0), (0, 0, 1))
    ):
        for dtype in ("u1", "u2"):
            out, expected = (np.zeros(shape, dtype) for _ in range(2))
            place(expected, array, at)
            _C.copy_boxes(out, [array], [at])
            np.testing.assert_array_equal(out, expected)


def test_others_run_meanwhile() -> None:
    """Python's lock is released while a box is copied: another thread counts on, in one call of many on busy cores."""
    array, out = np.zeros((16, 512, 512), "u1"), np.zeros((16, 512, 512), "f8")
    counted, done = [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            counted[0] += 1
            time.sleep(0)

    def counts_during_a_call() -> int:
        before = counted[0]
        _C.copy_boxes(out, [array], [(0, 0, 0)])
        return counted[0] - before

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=count)
    thread.start()
    sys.setswitchinterval(1e3)  # nobody is made to give the lock away: it changes hands where it is released
    try:
        assert any(counts_during_a_call() for _ in range(100))
    finally:
        sys.setswitchinterval(interval)
        done.set()
        thread.join()
