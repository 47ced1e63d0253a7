# SPDX-License-Identifier: BSD-3-Clause
"""fastseg init FOLDER: a configuration that checks, trains and segments as it is, for the usual layouts."""

from __future__ import annotations

from pathlib import Path

import h5py
import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
import yaml

from fastseg.commands.found import write_found
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError
from fastseg.methods.config_file import load_config
from fastseg.train.folders import each_file_apart
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


SIDE_BY_SIDE = {
    "words behind both": (
        ["a_image.png", "b_image.png"],
        ["a_gbm.png", "b_gbm.png"],
        "*_image.png",
        "*_gbm.png",
    ),
    "another suffix": (
        ["a1f.png", "b1.png"],
        ["a1f_instances.tif", "b1_instances.tif"],
        "*.png",
        "*_instances.tif",
    ),
    "a pair": (["8_cell_raw.tif"], ["8_cell_nuclei.tif"], "8_cell_raw.tif", "8_cell_nuclei.tif"),
    "signs of patterns": (
        ["[1]_raw.png", "?_raw.png"],
        ["[1]_seg.png", "?_seg.png"],
        "*_raw.png",
        "*_seg.png",
    ),
}


@pytest.mark.parametrize("case", SIDE_BY_SIDE)
def test_images_and_labels_side_by_side(tmp_path: Path, case: str) -> None:
    images, labels, raw_pattern, labels_pattern = SIDE_BY_SIDE[case]
    for name in (*images, *labels):
        write(tmp_path / "cells" / name, (30, 40))
    lines = write_found(str(tmp_path / "cells"), str(tmp_path / "run.yaml"))
    (entry,) = yaml.safe_load((tmp_path / "run.yaml").read_text())["data"]["train"]
    assert entry == {"raw": f"cells/{raw_pattern}", "labels": f"cells/{labels_pattern}"}
    assert any(f"{a} with {b}" in lines[1] for a, b in zip(images, labels, strict=True))


def test_images_that_no_pattern_tells_from_their_labels_have_an_entry_each(tmp_path: Path) -> None:
    for name in ("x.tif", "x_mask.tif", "y.tif", "y_mask.tif", "lonely.tif"):
        write(tmp_path / "cells" / name, (30, 40))
    lines = write_found(str(tmp_path / "cells"), str(tmp_path / "run.yaml"))
    entries = yaml.safe_load((tmp_path / "run.yaml").read_text())["data"]["train"]
    assert entries == [{"raw": f"cells/{c}.tif", "labels": f"cells/{c}_mask.tif"} for c in "xy"]
    assert "1 images without labels are left out: lonely.tif" in lines


@pytest.mark.parametrize(
    "names", [("a_red.png", "a_green.png"), ("a.png", "a_red.png"), ("a.png", "a_xy.png", "a_mask.png")]
)
def test_files_side_by_side_that_do_not_say_which_is_which(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write(tmp_path / "cells" / name, (30, 40))
    with pytest.raises(InputError, match=r"names do not say which is which: move the labels"):
        write_found(str(tmp_path / "cells"), str(tmp_path / "run.yaml"))
    assert not (tmp_path / "run.yaml").exists()


def test_a_stack_with_a_mask_for_every_slice(tmp_path: Path) -> None:
    write(tmp_path / "brain" / "stack.tif", (18, 40, 48))
    for z in range(18):
        write(tmp_path / "brain" / "masks" / f"z{z}.png", (40, 48))
    lines = write_found(str(tmp_path / "brain"), str(tmp_path / "run.yaml"))
    (entry,) = yaml.safe_load((tmp_path / "run.yaml").read_text())["data"]["train"]
    assert entry == {"raw": "brain/stack.tif", "labels": "brain/masks"}
    assert "an image for each slice, in the order of their names from" in lines[1]


def blobs(path: Path) -> np.ndarray:
    """A stack whose bright balls are its labels."""
    z, y, x = np.ogrid[:24, :48, :48]
    cut = sum((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 < 81 for a, b, c in ((8, 14, 14), (15, 32, 33))) > 0
    path.parent.mkdir(parents=True)
    tifffile.imwrite(path, (60 + 120 * cut).astype("u1"), photometric="minisblack")
    return cut


@pytest.mark.parametrize("counted_from", [0, 1])
def test_a_stack_with_masks_of_a_few_slices(tmp_path: Path, counted_from: int) -> None:
    cut = blobs(tmp_path / "brain" / "stack.tif")
    (tmp_path / "brain" / "masks").mkdir()
    for z in (3, 5, 12, 19):
        imageio.imwrite(
            tmp_path / "brain" / "masks" / f"mask_{z + counted_from:03d}.png", cut[z].astype("u1") * 255
        )
    lines = write_found(str(tmp_path / "brain"), str(tmp_path / "run.yaml"), counted_from)
    (entry,) = yaml.safe_load((tmp_path / "run.yaml").read_text())["data"]["train"]
    assert entry["annotated"] == {"axis": "z", "slices": [3, 5, 12, 19]}
    labels = open_volume(str(tmp_path / "annotations.h5") + ":/labels")[:][0]
    assert np.array_equal(labels[[3, 5, 12, 19]] != 0, cut[[3, 5, 12, 19]])
    assert not any("trouble" in line for line in lines)
    assert fastseg("check", tmp_path / "run.yaml", "--seconds", 0).returncode == 0


def test_masks_of_a_few_slices_that_cannot_be_or_are_doubtful(tmp_path: Path) -> None:
    cut = blobs(tmp_path / "brain" / "stack.tif")
    masks = tmp_path / "brain" / "masks"
    masks.mkdir()
    for z in (2, 3, 4, 19, 20, 21):
        imageio.imwrite(masks / f"{z + 1}.png", cut[z].astype("u1"))
    lines = write_found(str(tmp_path / "brain"), str(tmp_path / "run.yaml"))
    assert any("trouble" in line and "--first" in line for line in lines)
    (tmp_path / "run.yaml").unlink()
    for name, message in (
        ("24.png", r"24.png is of slice 24, and .* has 0 to 23; give --first 1"),
        ("x3.png", r"are of one slice"),
        ("x.png", r"must have the number of its slice"),
    ):
        imageio.imwrite(masks / name, cut[0].astype("u1"))
        with pytest.raises(InputError, match=message):
            write_found(str(tmp_path / "brain"), str(tmp_path / "run.yaml"))
        (masks / name).unlink()


@pytest.mark.parametrize("suffix", [".nii.gz", ".mrc", ".npy", ".h5"])
def test_folders_of_volumes_that_are_no_images(tmp_path: Path, suffix: str) -> None:
    arrays = {"a": np.ones((18, 20, 24), "u1"), "b": np.ones((19, 24, 20), "u1")}
    for folder, ending in (("imagesTr", "_0000"), ("labelsTr", "")):
        (tmp_path / folder).mkdir()
        for name, array in arrays.items():
            save(tmp_path / folder / f"{name}{ending}{suffix}", array)
    write_found(str(tmp_path), str(tmp_path / "run.yaml"))
    config = each_file_apart(load_config(str(tmp_path / "run.yaml"), []))
    found = [(Path(e.raw).name, Path(e.labels or "").name) for e in config.data.train]
    assert found == [(f"{n}_0000{suffix}", f"{n}{suffix}") for n in "ab"]
    with pytest.raises(InputError, match=r"is no slice of a stack"):
        open_volume(str(tmp_path / "imagesTr"))


def save(path: Path, array: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["data"] = array
    elif path.suffix == ".mrc":
        pytest.importorskip("mrcfile").write(path, array.astype("i1"))
    else:
        nibabel = pytest.importorskip("nibabel")
        nibabel.save(nibabel.Nifti1Image(array.T, np.eye(4)), path)


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
    assert "trained: fastseg segment images --run runs/first, or another image" in done.stdout
    for image, output in (
        ("images/cell 0.png", "runs/first/segmented/cell 0.tif"),
        ("images", "runs/first/segmented/images"),
    ):
        done = fastseg("segment", image, "--run", "runs/first")
        assert done.returncode == 0, done.stderr
        assert Path(output).exists()
        again = fastseg("segment", image, "--run", "runs/first")
        assert "exists: add --overwrite to replace it" in again.stderr
    made = Path("runs/first/segmented/images")
    assert sorted(p.name for p in made.iterdir()) == ["cell 0.tif", "cell 1.tif"]
    assert tifffile.imread(made / "cell 1.tif").shape == (41, 50)
    # What training reads is as it was.
    assert sorted(p.name for p in Path("images").iterdir()) == ["cell 0.png", "cell 1.png"]
    assert sorted(p.name for p in Path().iterdir()) == ["fastseg.yaml", "images", "masks", "runs"]
