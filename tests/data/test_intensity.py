# SPDX-License-Identifier: BSD-3-Clause
"""Intensity scaling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastseg.data.intensity import Intensity, measure_intensity, scale_intensity
from fastseg.data.volumes import open_volume
from tests.data.scenes import SHAPE, stored


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4"])
def test_zscore_gives_mean_0_and_deviation_1(tmp_path: Path, dtype: str) -> None:
    array = (
        np.random.default_rng(0).normal(100, 8, (70, 90, 100)) + (10_000 if dtype == "f4" else 0)
    ).astype(dtype)
    intensity = measure_intensity(stored(tmp_path, "v", array), "zscore")
    scaled = (array.astype("f8") - intensity.shift[0]) * intensity.scale[0]
    assert abs(scaled.mean()) < 1e-6
    assert abs(scaled.std() - 1) < 1e-6


def test_zscore_of_a_large_volume_samples_it(tmp_path: Path) -> None:
    array = np.lib.format.open_memmap(tmp_path / "v.npy", mode="w+", dtype="u1", shape=(600, 256, 256))
    array[:] = np.linspace(0, 255, 600, dtype="u1")[:, None, None]
    intensity = measure_intensity(open_volume(tmp_path / "v.npy"), "zscore")
    assert abs(intensity.shift[0] - 127.5) < 4
    assert abs(1 / intensity.scale[0] - 255 / 12**0.5) < 4


def test_constant_volume_has_finite_scale(tmp_path: Path) -> None:
    assert measure_intensity(stored(tmp_path, "v", np.full(SHAPE, 7, "u1")), "zscore") == Intensity(
        (7.0,), (1.0,)
    )
    assert measure_intensity(stored(tmp_path, "v", np.full(SHAPE, 7, "u1")), "range") == Intensity(
        (0.0,), (1 / 255,)
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_scaling_is_by_sample_and_channel_and_leaves_what_it_reads(dtype: torch.dtype) -> None:
    raw = torch.arange(16).reshape(2, 2, 1, 2, 2).to(dtype)
    before, shift, scale = raw.clone(), torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[0.5, 2], [1, 3]])
    scaled = scale_intensity(raw, shift, scale)
    assert scaled.dtype == torch.float32
    assert torch.equal(scaled[1, 0], before[1, 0].float() - 3)
    assert torch.equal(scaled[0, 1], (before[0, 1].float() - 2) * 2)
    assert torch.equal(raw, before)


@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_percentiles_become_black_and_white_channel_by_channel(tmp_path: Path, dtype: str) -> None:
    rng = np.random.default_rng(0)
    array = np.stack([rng.gamma(2, 10, (3, 70, 90)), rng.normal(120, 9, (3, 70, 90))]).astype(dtype)
    np.save(tmp_path / "v.npy", array)
    intensity = measure_intensity(open_volume(tmp_path / "v.npy"), "percentile")
    for channel, shift, scale in zip(array, intensity.shift, intensity.scale, strict=True):
        low, high = np.percentile(channel, (1, 99))
        assert shift == pytest.approx(low)
        assert 1 / scale == pytest.approx(high - low)
    assert measure_intensity(stored(tmp_path, "c", np.full(SHAPE, 7, "u1")), "percentile") == Intensity(
        (7.0,), (1.0,)
    )
