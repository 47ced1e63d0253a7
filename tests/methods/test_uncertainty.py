# SPDX-License-Identifier: BSD-3-Clause
"""Entropies of windows in slices, from blocks as from the whole; the slices and places they point to."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastseg.data.volumes import Volume, open_volume
from fastseg.errors import InputError
from fastseg.methods.uncertainty import SliceUncertainty, measure_uncertainty
from fastseg.predict import CHUNK, Grid, Tiling


def volume_of(array: np.ndarray, folder: Path) -> Volume:
    np.save(folder / "v.npy", array)
    return open_volume(folder / "v.npy")


def identity(raw: Tensor) -> Tensor:
    """What is in the file is the probability."""
    return raw.float()


def windows_by_loop(probability: np.ndarray, axis: int, side: int) -> np.ndarray:
    """The definition, window by window, in one piece."""
    p = np.clip(np.moveaxis(probability.astype(np.float64), axis, 0), 1e-300, 1)
    q = np.clip(1 - p, 1e-300, 1)
    entropy = -p * np.log2(p) - q * np.log2(q)
    tall, wide = (min(side, size) for size in entropy.shape[1:])
    corners = [
        [a for a in range(0, size, step) if 2 * (size - a) >= step]
        for size, step in zip(entropy.shape[1:], (tall, wide), strict=True)
    ]
    means = [entropy[:, r : r + tall, c : c + wide].mean(axis=(1, 2)) for r, c in itertools.product(*corners)]
    return np.stack(means, axis=1).reshape(len(entropy), *map(len, corners))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [32, 21, 100])
def test_windows_across_blocks_are_those_of_the_whole(tmp_path: Path, axis: int, side: int) -> None:
    """Odd sizes, blocks 16 deep and 128 wide: windows of 32 cross them in z, those of 21 and 100 everywhere."""
    array = np.random.default_rng(axis).random((53, 145, 271)).astype("f4")
    array[:5, :40] = 0
    array[20:, 100:, 200:] = 1
    volume, tiling = volume_of(array, tmp_path), Tiling((8, 32, 32), 0.25, block_voxels=1 << 17)
    blocks = Grid(volume.shape, tiling, CHUNK).blocks()
    assert len({b.start[0] for b in blocks}) > 2
    assert len({b.start[1:] for b in blocks}) > 2
    found = measure_uncertainty(volume, identity, tiling, axis, side)
    expected = windows_by_loop(array, axis, side)
    assert found.windows.shape == expected.shape
    np.testing.assert_allclose(found.windows, expected, rtol=1e-5, atol=1e-6)


def test_several_classes_count_by_their_mean(tmp_path: Path) -> None:
    volume = volume_of(np.full((2, 16, 16), 0.5, "f4"), tmp_path)

    def network(raw: Tensor) -> Tensor:
        return torch.cat((raw.float(), torch.ones_like(raw, dtype=torch.float32)), 1)

    found = measure_uncertainty(volume, network, Tiling((2, 16, 16)), 0, 8, classes=2)
    np.testing.assert_array_equal(found.windows, np.full((2, 2, 2), 0.5, "f4"))


def test_exclusive_classes_share_one_entropy_with_the_background(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((2, 16, 24)).astype(np.float32) / 2

    def network(raw: Tensor) -> Tensor:
        return torch.cat([raw, raw / 2], 1)

    found = measure_uncertainty(
        volume_of(array, tmp_path), network, Tiling((2, 16, 16)), 0, 8, classes=2, exclusive=True
    )
    shares = np.stack([array, array / 2, 1 - 1.5 * array]).astype(np.float64)
    entropy = -(shares * np.log2(shares)).sum(0).reshape(2, 2, 8, 3, 8).mean((2, 4))
    np.testing.assert_allclose(found.windows, entropy, rtol=1e-4)


def test_score_is_the_mean_of_the_least_certain_tenth() -> None:
    """One large doubtful object of 2 among 20 windows outranks a thin doubt in all of them."""
    windows = np.zeros((3, 4, 5), "f4")
    windows[0] = 0.4
    windows[1, 1, 2], windows[1, 3, 0] = 1.0, 0.5
    windows[2, 0, 0] = 1.0
    found = SliceUncertainty(windows, (32, 16))
    np.testing.assert_allclose(found.scores(), [0.4, 0.75, 0.5])
    assert found.least_certain(1) == ((32, 32), (96, 0), (0, 0))
    few = SliceUncertainty(windows[:, :1, :3], (32, 16))
    np.testing.assert_allclose(few.scores(), [0.4, 0, 1])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_points_at_the_slice_a_network_is_unsure_in(tmp_path: Path, axis: int) -> None:
    array = np.zeros((40, 50, 60), "f4")
    np.moveaxis(array, axis, 0)[23, 9:17, 16:24] = 0.5
    found = measure_uncertainty(volume_of(array, tmp_path), identity, Tiling((8, 16, 16)), axis, 8)
    assert found.scores().argmax() == 23
    assert found.least_certain(23, 2) == ((8, 16), (16, 16))
    assert np.count_nonzero(found.scores()) == 1


def test_progress_and_nan(tmp_path: Path) -> None:
    volume, seen = volume_of(np.full((20, 20, 20), 0.5, "f4"), tmp_path), []
    measure_uncertainty(
        volume, identity, Tiling((8, 8, 8)), 0, progress=lambda name, share: seen.append(share)
    )
    assert seen == [0.5, 1.0]
    with pytest.raises(InputError, match=r"v\.npy: the network gives NaN"):
        measure_uncertainty(volume, lambda raw: raw * float("nan"), Tiling((8, 8, 8)), 0)
