# SPDX-License-Identifier: BSD-3-Clause
"""What is said of the ids in labels: likely ignore values, edges of smoothed masks, classes that are nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fastseg.data.annotations import AnnotatedVolume, Annotation, index_labels
from fastseg.data.label_facts import IdCounts, label_warnings
from fastseg.data.volumes import open_volume


def said(folder: Path, labels: np.ndarray, classes: tuple[int, ...] | None = None, **options) -> list[str]:
    np.save(folder / "labels.npy", labels)
    volume = open_volume(folder / "labels.npy")
    raw = AnnotatedVolume(volume, volume, classes=classes, **options)
    return label_warnings([volume], [index_labels(raw, 0).ids], classes)


def grid(*ids: int, dtype: str = "u1") -> np.ndarray:
    """An image in which each id has as many voxels."""
    return np.resize(np.array(ids, dtype), (12, 60))


def smoothed_mask() -> np.ndarray:
    mask = np.zeros((60, 60), "u1")
    mask[:, 30:] = 255
    mask[:, 25:35] = np.linspace(20, 230, 10).astype("u1")
    return mask


SUSPICIOUS = {
    "255 beside a class": (grid(0, 1, 255), None, "set data.ignore_label: 255"),
    "255 beside chosen classes": (
        grid(0, 1, 2, 255),
        (1, 2),
        "learnt as background: if .*ignore_label: 255",
    ),
    "the largest of 16 bits": (grid(0, 1, 2, 65535, dtype="u2"), None, "set data.ignore_label: 65535"),
    "-1": (grid(-1, 0, 1, dtype="i2"), None, "set data.ignore_label: -1"),
    "-1 and a wide range": (grid(-1, 0, 1, 1 << 40, dtype="i8"), None, "set data.ignore_label: -1"),
    "smoothed edges": (smoothed_mask(), None, "10 ids between, .* smoothed edges"),
    "empty": (grid(0), None, r"no foreground at all where .* their ids are 0 \(100 %\)"),
    "none of the classes": (grid(0, 255), (1, 2), r"no foreground at all of data.classes \[1, 2\]"),
    "one class nowhere": (grid(0, 1, 2), (1, 2, 7), "class 7 of data.classes is in no training volume"),
}


@pytest.mark.parametrize("case", SUSPICIOUS)
def test_what_is_suspicious_is_said_in_one_line(tmp_path: Path, case: str) -> None:
    labels, classes, message = SUSPICIOUS[case]
    (line,) = said(tmp_path, labels, classes)
    assert re.search(message, line), line


@pytest.mark.parametrize(
    "labels",
    [
        grid(0, 1),
        grid(0, 255),  # how image editors write masks
        grid(1, 2),
        np.arange(900).reshape(30, 30).astype("u2"),  # instances
        np.arange(256).reshape(16, 16).astype("u1"),  # instances that use up their dtype
        grid(0, 1) > 0,
    ],
)
def test_usual_labels_are_not_suspicious(tmp_path: Path, labels: np.ndarray) -> None:
    assert said(tmp_path, labels) == []


def test_what_is_ignored_or_not_annotated_does_not_count(tmp_path: Path) -> None:
    assert said(tmp_path, grid(0, 1, 255), ignore_label=255) == []
    labels = np.zeros((4, 8, 8), "u1")
    labels[0, :4], labels[1], labels[2, 0] = 1, 255, 1
    (line,) = said(tmp_path, labels, annotation=Annotation(0, (3,)))
    assert "no foreground at all" in line
    assert said(tmp_path, labels, annotation=Annotation(0, (0, 2))) == []


def test_ids_are_counted_over_blocks() -> None:
    counts = IdCounts()
    for block in (np.array([0, 0, 3]), np.array([3, 1 << 41, 0]), np.array([], "u1"), np.array([-2], "i1")):
        counts.add(block)
    assert counts.ids.tolist() == [-2, 0, 3, 1 << 41]
    assert counts.counts.tolist() == [1, 3, 2, 1]
    assert str(counts) == "-2 (14.3 %), 0 (42.9 %), 3 (28.6 %), 2199023255552 (14.3 %)"
    counts.add(np.arange(100, 120))
    assert str(counts).endswith("and 16 more")


def test_jpeg_labels_are_warned_of(tmp_path: Path) -> None:
    import imageio.v3 as imageio

    imageio.imwrite(tmp_path / "labels.jpg", np.zeros((16, 16), "u1"))
    counts = IdCounts()
    counts.add(grid(0, 1))
    (line,) = label_warnings([open_volume(tmp_path / "labels.jpg")], [counts], None)
    assert "JPEG changes ids" in line
