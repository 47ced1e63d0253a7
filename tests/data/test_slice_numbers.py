# SPDX-License-Identifier: BSD-3-Clause
"""Annotated slices whose numbers are one off are found, and others are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastseg.data.annotations import AnnotatedVolume, Annotation
from fastseg.data.slice_numbers import doubtful_slices
from tests.data.scenes import stored

SLICES = (2, 5, 8, 11, 14)


def sections(thick: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images of disks, and the disks: elsewhere in each slice, or, of thin slices, at nearly the same place."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    middles = rng.integers(16, 48, (18, 2)) if thick else np.full((18, 2), 30) + np.arange(18)[:, None] // 9
    labels = np.stack([(y - a) ** 2 + (x - b) ** 2 < 120 for a, b in middles]).astype("u1")
    return (labels * 90 + rng.normal(60, 12, labels.shape)).astype("f4"), labels


def said(folder: Path, raw: np.ndarray, labels: np.ndarray, axis: int = 0, **options: object) -> list[str]:
    arrays = [np.moveaxis(a, 0, axis) for a in (raw, labels)]
    volumes = [stored(folder, name, a) for name, a in zip(("raw", "labels"), arrays, strict=True)]
    return doubtful_slices(AnnotatedVolume(*volumes, annotation=Annotation(axis, SLICES), **options))


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("step", [-1, 1])
def test_slices_counted_from_1_are_found(tmp_path: Path, axis: int, step: int) -> None:
    raw, labels = sections()
    sparse = np.zeros_like(labels)
    there = np.array(SLICES) + step
    sparse[there] = labels[there]
    (line,) = said(tmp_path, raw, sparse, axis)
    assert f"hold no label, and those at {'zyx'[axis]} {step:+d} do" in line
    assert f"seems to be {-step:+d} off" in line
    own = np.zeros_like(labels)
    own[[*SLICES]] = labels[[*SLICES]]
    assert said(tmp_path, raw, own, axis) == []


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("step", [-1, 1])
def test_labels_one_slice_from_their_image_are_found(tmp_path: Path, axis: int, step: int) -> None:
    raw, labels = sections()
    assert said(tmp_path, raw, labels, axis) == []
    (line,) = said(tmp_path, raw, np.roll(labels, -step, 0), axis)
    assert f"on the edges of the image at {'zyx'[axis]} {step:+d} rather than" in line
    assert "in 5 of 5 slices" in line


def test_nothing_is_said_where_nothing_is_known(tmp_path: Path) -> None:
    raw, labels = sections()
    assert said(tmp_path, raw, np.zeros_like(labels)) == []
    assert said(tmp_path, np.zeros_like(raw), labels) == []
    assert said(tmp_path, np.random.default_rng(1).normal(size=raw.shape).astype("f4"), labels) == []
    assert said(tmp_path, *(np.roll(a, i, 0) for i, a in enumerate(sections(thick=False)))) == []
    volume = stored(tmp_path, "raw", raw)
    assert doubtful_slices(AnnotatedVolume(volume, stored(tmp_path, "labels", np.roll(labels, 1, 0)))) == []
    assert doubtful_slices(AnnotatedVolume(volume, annotation=Annotation(0, SLICES))) == []


def test_what_is_ignored_is_no_label(tmp_path: Path) -> None:
    raw, labels = sections()
    rest = np.full_like(labels, 255)
    there = np.array(SLICES) + 1
    rest[there] = labels[there]
    (line,) = said(tmp_path, raw, rest, ignore_label=255)
    assert "hold no label, and those at z +1 do" in line
