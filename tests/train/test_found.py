# SPDX-License-Identifier: BSD-3-Clause
"""fastseg init FOLDER: a configuration that checks, trains and segments as it is, for the usual layouts."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
import yaml

from fastseg.errors import InputError
from fastseg.train.found import write_found
from tests.project import fastseg


def write(path: Path, shape: tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(0).integers(0, 2, shape).astype("u1")
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="minisblack")
    else:
        imageio.imwrite(path, array)


LAYOUTS = {
    "images and masks": ("images/a.png", "masks/a_mask.png", (60, 70), [56, 64]),
    "nnU-Net": ("imagesTr/a_0000.tif", "labelsTr/a.tif", (18, 40, 110), [16, 40, 96]),
    "thin stacks": ("raw/a.tif", "Labels/a.tif", (4, 40, 300), [40, 256]),
    "another name": ("my cells/a.png", "gt/a.png", (600, 600), [256, 256]),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_what_is_found(tmp_path: Path, case: str) -> None:
    raw, labels, shape, patch = LAYOUTS[case]
    for name in (raw, labels):
        write(tmp_path / "data" / name, shape)
    lines = write_found(str(tmp_path / "data"), str(tmp_path / "run.yaml"))
    values = yaml.safe_load((tmp_path / "run.yaml").read_text())
    folders = {"raw": f"data/{Path(raw).parent}", "labels": f"data/{Path(labels).parent}"}
    assert values["data"] == {"train": [folders], "patch": patch}
    assert values["method"] == "supervised"
    assert any(Path(labels).name in line for line in lines)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must hold images, or a folder such as images .* got no images"):
        write_found(str(tmp_path), str(tmp_path / "run.yaml"))
    for name in ("left", "right"):
        write(tmp_path / name / "a.png", (30, 30))
    with pytest.raises(InputError, match=r"got left, right"):
        write_found(str(tmp_path), str(tmp_path / "run.yaml"))
    write(tmp_path / "images" / "a.png", (12, 40))
    with pytest.raises(InputError, match=r"at least 16 pixels to each side, the smallest are \[12, 40\]"):
        write_found(str(tmp_path), str(tmp_path / "run.yaml"))
    write(tmp_path / "images" / "a.png", (30, 40))
    write_found(str(tmp_path), str(tmp_path / "run.yaml"))
    assert "patch_contrast, which needs none" in (tmp_path / "run.yaml").read_text()
    with pytest.raises(InputError, match=r"run.yaml exists already"):
        write_found(str(tmp_path), str(tmp_path / "run.yaml"))


@pytest.mark.parametrize(
    "names",
    [("a_image.png", "a_gbm.png"), ("b1.png", "a1f.png", "a1f_instances.tif"), ("x.tif", "x_mask.png")],
)
def test_images_and_labels_side_by_side_are_not_taken_for_images(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        write(tmp_path / "cells" / name, (30, 40))
    with pytest.raises(InputError, match=r"seems to hold images and their labels side by side, as in \w+\."):
        write_found(str(tmp_path / "cells"), str(tmp_path / "run.yaml"))
    assert not (tmp_path / "run.yaml").exists()


def test_a_folder_of_images_alone(tmp_path: Path) -> None:
    for name in ("cell_001.png", "cell_002.png", "other.png"):
        write(tmp_path / "cells" / name, (30, 40))
    (line, *_) = write_found(str(tmp_path / "cells"), str(tmp_path / "run.yaml"))
    assert line.startswith("3 images in ")


def test_the_road_of_a_newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """init, check, train, segment, each as the one before says."""
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        write(tmp_path / f"images/cell {i}.png", (40 + i, 50))
        write(tmp_path / f"masks/cell {i}_mask.png", (40 + i, 50))
    done = fastseg("init", ".")
    assert done.returncode == 0, done.stderr
    assert "try fastseg check fastseg.yaml, then fastseg train fastseg.yaml" in done.stdout
    assert fastseg("check", "fastseg.yaml", "--seconds", 0).returncode == 0
    done = fastseg("train", "fastseg.yaml", "train.steps=2", "network.width=2", "train.device=cpu")
    assert done.returncode == 0, done.stderr
    for image, output in (
        ("images/cell 0.png", "images/cell 0_segmented.tif"),
        ("images", "images_segmented"),
    ):
        done = fastseg("segment", image, "--run", "runs/first")
        assert done.returncode == 0, done.stderr
        assert Path(output).exists()
        again = fastseg("segment", image, "--run", "runs/first")
        assert "exists: add --overwrite to replace it" in again.stderr
        if Path(output).is_file():
            Path(output).unlink()  # or it would be an image of the folder
    assert sorted(p.name for p in Path("images_segmented").iterdir()) == ["cell 0.tif", "cell 1.tif"]
    assert tifffile.imread("images_segmented/cell 1.tif").shape == (41, 50)
