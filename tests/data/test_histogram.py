# SPDX-License-Identifier: BSD-3-Clause
"""Histogram matching: the zero rule by hand, scikit-image where the rules agree, monotone, itself, block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from skimage.exposure import match_histograms as by_scikit_image

from fastseg.data.histogram import Histogram, histogram_of, match_histograms
from fastseg.data.volumes import Volume, open_volume
from fastseg.errors import InputError


def stored(folder: Path, name: str, array: np.ndarray) -> Volume:
    np.save(folder / f"{name}.npy", array)
    return open_volume(folder / f"{name}.npy")


def pair(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """A dark and a bright volume without zeros."""
    rng = np.random.default_rng(0)
    scale = {"u1": 1, "u2": 200, "f4": 0.01}[dtype]
    draw = [rng.normal(mean, width, (6, 50, 60)).clip(3, 250) for mean, width in ((80, 15), (150, 30))]
    one, two = ((values * scale).astype(dtype) for values in draw)
    return one, two


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_without_zeros_it_is_scikit_images(tmp_path: Path, dtype: str) -> None:
    source, target = pair(dtype)
    lookup = match_histograms(
        histogram_of([stored(tmp_path, "s", source)]), histogram_of([stored(tmp_path, "t", target)])
    )
    expected = by_scikit_image(source.astype("f8"), target.astype("f8"))
    assert lookup(source).dtype == source.dtype
    error = np.abs(lookup(source) - expected)
    if dtype == "f4":  # bins of 4e-5; where values are rare, they are far from one another
        assert np.quantile(error, 0.99) < 5e-4
        assert error.max() < 0.05
    else:
        assert error.max() <= 0.5


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_it_is_monotone_keeps_zeros_and_gives_back_itself(tmp_path: Path, dtype: str) -> None:
    source, target = pair(dtype)
    source[:, :9], target[:, 40:] = 0, 0
    mine, theirs = (histogram_of([stored(tmp_path, n, a)]) for n, a in (("s", source), ("t", target)))
    matched = match_histograms(mine, theirs)(source)
    assert ((matched == 0) >= (source == 0)).all()
    order = np.argsort(source, axis=None)
    assert (np.diff(matched.reshape(-1)[order].astype("f8")) >= 0).all()
    # Padding takes no part: what is left has the distribution of the target's rest.
    quantiles = (0.1, 0.5, 0.9)
    spread = float(target.max()) / 250
    found, expected = (np.quantile(a[a != 0], quantiles) for a in (matched, target))
    np.testing.assert_allclose(found, expected, atol=3 * spread)
    level = 1 if dtype != "f4" else float(source.max()) / 65_536
    same = match_histograms(mine, mine)(source)
    assert np.abs(same.astype("f8") - source.astype("f8")).max() <= level


def test_zeros_are_as_many_as_the_next_two_levels_foretell() -> None:
    levels = np.arange(4.0)
    # Of 100 zeros max(0, 2 * 3 - 2) = 4 are believed, of the target's 50 none, as 2 * 1 - 7 < 0.
    lookup = match_histograms(
        Histogram(levels, np.array([100, 3, 2, 1])), Histogram(levels, np.array([50, 1, 7, 4]))
    )
    quantiles = np.cumsum([4, 3, 2, 1]) / 10
    assert lookup.matched.tolist() == np.interp(quantiles, np.cumsum([1, 7, 4]) / 12, [1, 2, 3]).tolist()
    assert lookup(np.array([0, 3], "u1")).tolist() == [0, 3]


def test_blocks_and_volumes_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = pair("u1")
    one, two = stored(tmp_path, "s", source), stored(tmp_path, "t", target)
    whole = histogram_of([one, two])
    blocks = Volume.blocks
    monkeypatch.setattr(Volume, "blocks", lambda volume: blocks(volume, 1000))
    parts = histogram_of([one, two])
    assert (whole.counts == parts.counts).all()
    both = np.concatenate((source.ravel(), target.ravel()))
    assert (whole.counts == np.bincount(both, minlength=256)).all()


def test_a_black_volume_stays_black(tmp_path: Path) -> None:
    black = stored(tmp_path, "b", np.zeros((2, 5, 5), "u1"))
    histogram = histogram_of([black])
    assert not match_histograms(histogram, histogram)(np.zeros((2, 5, 5), "u1")).any()


def test_bad_input(tmp_path: Path) -> None:
    one, two = (
        stored(tmp_path, "a", np.ones((2, 3, 3), "u1")),
        stored(tmp_path, "b", np.ones((2, 3, 3), "u2")),
    )
    with pytest.raises(InputError, match="histograms need volumes of one dtype, got "):
        histogram_of([one, two])
    with pytest.raises(InputError, match="got none"):
        histogram_of([])
    with pytest.raises(InputError, match="holds nan at"):
        histogram_of([stored(tmp_path, "c", np.full((1, 2, 2), np.nan, "f4"))])
