# SPDX-License-Identifier: BSD-3-Clause
"""Areas of ImageJ's ROI manager as labels, and labels that napari saved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from fastseg.data.annotation_import import ANNOTATIONS
from fastseg.data.imagej_rois import draw_rois
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError
from tests.project import fastseg

roifile = pytest.importorskip("roifile")

SHAPE = (6, 30, 40)


def roi(
    kind: str, top: int = 0, left: int = 0, bottom: int = 0, right: int = 0, z: int = 0, **values: object
) -> object:
    made = roifile.ImagejRoi()
    made.roitype, made.name = roifile.ROI_TYPE[kind], kind.lower()
    made.top, made.left, made.bottom, made.right, made.position = top, left, bottom, right, z
    for name, value in values.items():
        setattr(made, name, value)
    return made


def outlined(points: list[tuple[int, int]], z: int = 0) -> object:
    """(x, y) corners of pixels, as ImageJ's polygon tool sets them."""
    made = roifile.ImagejRoi.frompoints(np.array(points))
    made.roitype, made.position = roifile.ROI_TYPE.POLYGON, z
    return made


def test_areas_are_the_pixels_whose_middles_lie_inside(tmp_path: Path) -> None:
    path = str(tmp_path / "a.zip")
    areas = [
        roi("RECT", 2, 3, 6, 10),
        outlined([(20, 10), (30, 10), (30, 20), (20, 20)]),
        outlined([(0, 20), (10, 30), (0, 30)]),
        roi("OVAL", 20, 30, 30, 40),
        roi("RECT", 4, 8, 8, 12),  # over a corner of the first
    ]
    roifile.roiwrite(path, areas, name=[f"{n}" for n in range(5)])
    expected = np.zeros(SHAPE[1:], int)
    expected[2:6, 3:10] = 1
    expected[10:20, 20:30] = 2
    y, x = np.mgrid[:30, :40] + 0.5
    expected[(y > 20) & (x < y - 20) & (x < 10)] = 3
    expected[(y - 25) ** 2 + (x - 35) ** 2 <= 25] = 4
    expected[4:8, 8:12] = 5
    found = draw_rois(path, SHAPE[1:])
    on_the_slope = np.abs(x - (y - 20)) < 1e-6  # middles on the line itself belong to either side
    assert np.array_equal(found[~on_the_slope], expected[~on_the_slope])


def test_holes_of_composite_areas_are_holes(tmp_path: Path) -> None:
    square = [0, 5, 5, 1, 15, 5, 1, 15, 15, 1, 5, 15, 4]  # move, line, line, line, close
    hole = [0, 8, 8, 1, 12, 8, 1, 12, 12, 1, 8, 12, 4]
    path = np.array([*square, *hole], np.float32)
    made = roi("RECT", 5, 5, 15, 15, multi_coordinates=path, shape_roi_size=len(path))
    made.tofile(tmp_path / "a.roi")
    expected = np.zeros(SHAPE[1:], int)
    expected[5:15, 5:15] = 1
    expected[8:12, 8:12] = 0
    assert np.array_equal(draw_rois(str(tmp_path / "a.roi"), SHAPE[1:]), expected)


def test_from_a_roi_set_of_a_stack_to_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("raw.npy", np.zeros(SHAPE, "u1"))
    assert fastseg("annotate-plan", "raw.npy", "plan", "--at", "1").returncode == 0
    areas = [roi("RECT", 2, 3, 6, 10, 2), roi("RECT", 10, 10, 12, 12, 5), roi("RECT", 20, 20, 25, 30, 5)]
    for area in areas:
        area.name = "cell"  # the same for all
    roifile.roiwrite("RoiSet.zip", areas, name=["a", "b", "c"])
    done = fastseg("annotate-import", "plan", "--rois", "RoiSet.zip")
    assert done.returncode == 0, done.stderr
    assert "slices: [1, 4]" in done.stdout
    expected = np.zeros(SHAPE, int)
    expected[1, 2:6, 3:10] = expected[4, 10:12, 10:12] = 1
    expected[4, 20:25, 20:30] = 2
    labels, mask = (open_volume(f"plan/{ANNOTATIONS}:/{name}")[:][0] for name in ("labels", "mask"))
    assert np.array_equal(labels, expected)
    assert np.array_equal(mask.any((1, 2)), [False, True, False, False, True, False])
    again = fastseg("annotate-import", "plan", "--rois", "RoiSet.zip")
    assert "z0001_labels.zip is there already" in again.stderr
    assert fastseg("annotate-import", "plan").returncode == 0
    roifile.roiwrite("RoiSet.zip", [roi("RECT", 2, 3, 6, 10, 7)], mode="w")
    assert (
        "is of ImageJ's slice 7, and there are 1 to 6"
        in fastseg("annotate-import", "plan", "--rois", "RoiSet.zip").stderr
    )
    roifile.roiwrite("RoiSet.zip", [roi("RECT", 2, 3, 6, 10, 0)], mode="w")
    assert "belongs to no slice" in fastseg("annotate-import", "plan", "--rois", "RoiSet.zip").stderr


def test_what_is_no_area_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "a.roi")
    for wrong, message in (
        (roi("LINE", x1=1, y1=1, x2=9, y2=9), "is a line, and only areas"),
        (roi("RECT", 100, 100, 110, 110), "'rect' lies beyond the picture of 30 x 40"),
    ):
        wrong.tofile(path)
        with pytest.raises(InputError, match=message):
            draw_rois(path, SHAPE[1:])
    Path(path).write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a.roi cannot be read as ROIs of ImageJ"):
        draw_rois(path, SHAPE[1:])


@pytest.mark.parametrize("dtype", ["u1", "i4", "i8"])
def test_labels_of_napari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """As napari.utils.io.imsave writes a layer: a slice of a plan, and a whole stack of three slices, which TIFF might
    take for colours."""
    monkeypatch.chdir(tmp_path)
    labels = np.zeros((3, 30, 40), dtype)
    labels[:, 4:9, 5:20], labels[1:, 20:25, 3:8] = 1, 7
    np.save("raw.npy", np.zeros(labels.shape, "u1"))
    assert fastseg("annotate-plan", "raw.npy", "plan", "--at", "1").returncode == 0
    tifffile.imwrite("plan/z0001_labels.tif", labels[1], compression="zlib", compressionargs={"level": 1})
    assert fastseg("annotate-import", "plan").returncode == 0
    assert np.array_equal(open_volume(f"plan/{ANNOTATIONS}:/labels")[:][0, 1], labels[1])
    tifffile.imwrite("labels.tif", labels, compression="zlib", compressionargs={"level": 1})
    assert np.array_equal(open_volume("labels.tif", "zyx", ids=True)[:][0], labels)
    done = fastseg("check", config(tmp_path), "--seconds", 0)
    assert done.returncode == 0, done.stderr
    assert ", 7 (" in done.stdout


def config(folder: Path) -> Path:
    (folder / "run.yaml").write_text(
        "{method: supervised, output: run, data: {train: [{raw: raw.npy, labels: labels.tif}], patch: [16, 16]}, "
        "network: {width: 2, pooling: [[2, 2]]}}"
    )
    return folder / "run.yaml"
