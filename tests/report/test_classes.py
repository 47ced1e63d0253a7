# SPDX-License-Identifier: BSD-3-Clause
"""Pictures of several classes show all of them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as imageio
import numpy as np

from fastseg.data.annotations import AnnotatedVolume
from fastseg.report import draw_comparison
from fastseg.report.page import _samples
from fastseg.report.pictures import class_colour
from fastseg.report.samples import Sample
from tests.data.scenes import stored

LABELS = np.zeros((1, 60, 80), np.uint8)
LABELS[0, 10:30, 10:30], LABELS[0, 35:50, 40:70], LABELS[0, 5:9, 60:66] = 1, 2, 3
MASKS = np.stack([value == LABELS for value in (1, 2, 3)])


def colours_of(picture: np.ndarray, count: int) -> list[bool]:
    return [bool((picture[..., :3] == class_colour(n)).all(-1).any()) for n in range(count)]


def test_evaluation_shows_all_classes(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 255, LABELS.shape).astype(np.uint8)
    truth = AnnotatedVolume(
        stored(tmp_path, "raw", raw), stored(tmp_path, "labels", LABELS), classes=(1, 2, 3)
    )
    shown = {}
    for absent in (None, 2):
        masks = np.stack([mask & (number != absent) for number, mask in enumerate(MASKS)])
        prediction = {"prediction": stored(tmp_path, f"masks{absent}", masks.astype(np.uint8))}
        draw_comparison(f"{tmp_path}/{absent}.png", truth, prediction, "title", ["a", "b", "c"])
        shown[absent] = imageio.imread(tmp_path / f"{absent}.png")[:, :, :3]
        assert colours_of(shown[absent], 4) == [True, True, True, False]  # in the legend, at least
    height, width = (min(sizes) for sizes in zip(*(p.shape[:2] for p in shown.values()), strict=True))
    differs = np.flatnonzero((shown[None] != shown[2])[:height, :width].any((0, 2)))
    assert differs.min() > width * 2 // 3  # in the third column, of the prediction


def test_samples_show_all_classes() -> None:
    sample = Sample(
        "slice", LABELS[:, :, :], MASKS[:, 0], MASKS[:, 0], LABELS[0] >= 0, (1.0, 1.0), ("a", "b<", "c")
    )
    assert sample.dice == [1.0, 1.0, 1.0]
    text = _samples(SimpleNamespace(value=lambda *names: None), {"training": [sample]})  # type: ignore[arg-type]
    pictures = [
        imageio.imread(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", text)
    ]
    assert [colours_of(picture, 3) for picture in pictures if picture.ndim == 3] == [[True] * 3] * 2
    assert text.count("<use ") == 2
    assert "Dice here a 1.000, b&lt; 1.000, c 1.000" in text
    assert text.count("b&lt;") == 2
