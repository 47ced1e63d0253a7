# SPDX-License-Identifier: BSD-3-Clause
"""Folders as people bring them: several sizes, stacks, channels, labels whose slices are called something else."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile
from PIL import Image

from fastseg.data.annotations import AnnotatedVolume
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError
from fastseg.train.config import Config
from fastseg.train.folders import each_file_apart
from fastseg.train.inputs import open_training
from tests.project import fastseg


def config_of(folder: Path, raw: str = "images", labels: str | None = "masks", **entry: object) -> Config:
    entry |= {"raw": raw, "labels": labels}
    return Config(
        method="supervised", output="run", data={"root": str(folder), "patch": [16, 16], "train": [entry]}
    )


def opened(config: Config) -> list[AnnotatedVolume]:
    return open_training(each_file_apart(config))


def write(path: Path, value: int, shape: tuple[int, ...] = (20, 30), **options: object) -> None:
    path.parent.mkdir(exist_ok=True)
    image = np.full(shape, value, "u1")
    if path.suffix == ".tif":
        tifffile.imwrite(path, image, **options)
    else:
        imageio.imwrite(path, image)


def values(volumes: list[AnnotatedVolume]) -> list[tuple[int, int]]:
    return [(int(v.raw[:].max()), int(v.labels[:].max())) for v in volumes]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_images_of_several_sizes_are_an_entry_each_with_their_own_labels(tmp_path: Path, suffix: str) -> None:
    for i in (1, 2, 10):
        write(tmp_path / f"images/[p]{i}.{suffix}", i, (20 + i, 30))
        write(tmp_path / f"masks/[p]{i:03d}_mask.png", i + 100, (20 + i, 30))
    assert values(opened(config_of(tmp_path))) == [(1, 101), (2, 102), (10, 110)]
    shared = each_file_apart(config_of(tmp_path, weight=0.9)).data.train
    assert [entry.weight for entry in shared] == pytest.approx([0.3] * 3)


def test_images_of_one_size_stay_a_stack(tmp_path: Path) -> None:
    for i in (1, 2, 10):
        write(tmp_path / f"images/z{i}.png", i)
        write(tmp_path / f"masks/z{i}.png", i + 100)
    (volume,) = opened(config_of(tmp_path))
    assert volume.shape == (3, 20, 30)
    assert volume.raw[:][0, :, 0, 0].tolist() == [1, 2, 10]
    assert volume.labels[:][0, :, 0, 0].tolist() == [101, 102, 110]


def test_labels_that_would_be_read_in_another_order_are_refused(tmp_path: Path) -> None:
    for name, mask in (("a_img", "gt_b"), ("b_img", "z_a")):
        write(tmp_path / f"images/{name}.png", 1)
        write(tmp_path / f"masks/{mask}.png", 1)
    with pytest.raises(InputError, match=r"no name in common|do not pair up"):
        each_file_apart(config_of(tmp_path))
    (tmp_path / "pairs.csv").write_text(
        "raw,labels\nimages/a_img.png,masks/z_a.png\nimages/b_img.png,masks/gt_b.png\n"
    )
    train = each_file_apart(config_of(tmp_path, pairs="pairs.csv")).data.train
    assert [Path(entry.labels or "").name for entry in train] == ["z_a.png", "gt_b.png"]


def test_a_missing_mask_is_named_by_check(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"images/{name}.png", 1, (64, 64))
    for name in "acd":
        write(tmp_path / f"masks/{name}_mask.png", 1, (64, 64))
    config = tmp_path / "run.yaml"
    config.write_text("output: run\ndata: {patch: [32, 32], train: [{raw: images, labels: masks}]}\n")
    done = fastseg("check", config, "--seconds", 0)
    assert done.returncode == 2
    assert "images/b.png: no labels of that name" in done.stderr
    assert "masks/d_mask.png: no image of that name" in done.stderr
    (tmp_path / "masks/d_mask.png").rename(tmp_path / "masks/b_mask.png")
    write(tmp_path / "images/b.png", 1, (66, 64))
    write(tmp_path / "masks/b_mask.png", 1, (66, 64))
    done = fastseg("check", config, "--seconds", 0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("images/b.png") < done.stdout.index("masks/b_mask.png, ids: 1 (100 %)")


def test_a_folder_of_stacks_is_a_volume_for_each_file(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / f"images/s{i}.tif", i + 1, (12, 20, 30), imagej=True, metadata={"axes": "ZYX"})
        write(tmp_path / f"masks/s{i}_seg.tif", i + 101, (12, 20, 30), imagej=True, metadata={"axes": "TYX"})
    volumes = opened(config_of(tmp_path))
    assert [v.shape for v in volumes] == [(12, 20, 30)] * 2
    assert values(volumes) == [(1, 101), (2, 102)]
    with pytest.raises(
        InputError, match=r"s0.tif holds a stack of 12 slices, axes zyx: .* a volume for each file"
    ):
        open_volume(tmp_path / "images")


CHANNELS = {
    "cyx": ((2, 20, 30), {"imagej": True, "metadata": {"axes": "CYX"}}, 2),
    "OME cyx": ((3, 20, 30), {"ome": True, "metadata": {"axes": "CYX"}, "photometric": "minisblack"}, 3),
    "two samples": ((20, 30, 2), {"photometric": "minisblack", "planarconfig": "contig"}, 2),
    "four samples": ((20, 30, 4), {"photometric": "minisblack", "planarconfig": "contig"}, 4),
    "rgb": ((20, 30, 3), {"photometric": "rgb"}, 3),
    "rgba": ((20, 30, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, 3),
    "rgba, planes": (
        (4, 20, 30),
        {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["assocalpha"]},
        3,
    ),
    "grey and alpha": ((20, 30, 2), {"photometric": "minisblack", "extrasamples": ["unassalpha"]}, 1),
    "rgba, deflated": (
        (20, 30, 4),
        {"photometric": "rgb", "extrasamples": ["unassalpha"], "compression": "zlib", "tile": (16, 16)},
        3,
    ),
}


@pytest.mark.parametrize("case", CHANNELS)
def test_a_tiff_has_the_same_channels_alone_and_in_a_folder(tmp_path: Path, case: str) -> None:
    shape, options, channels = CHANNELS[case]
    array = np.random.default_rng(0).integers(0, 255, shape).astype("u1")
    (tmp_path / "f").mkdir()
    tifffile.imwrite(tmp_path / "f/a.tif", array, **options)
    expected = array if shape[0] < 20 else np.moveaxis(array, -1, 0)
    for volume in (open_volume(tmp_path / "f/a.tif"), open_volume(tmp_path / "f")):
        assert (volume.channels, volume.shape) == (channels, (1, 20, 30))
        np.testing.assert_array_equal(volume[:][:, 0], expected[:channels])
        np.testing.assert_array_equal(volume[:, 3:9, 5:28][:, 0], expected[:channels, 3:9, 5:28])


def test_axes_of_files_that_state_none(tmp_path: Path) -> None:
    for i in range(2):
        write(tmp_path / f"images/{i}.tif", i, (2, 20, 30), photometric="minisblack")
        write(tmp_path / f"masks/{i}.tif", i)
    with pytest.raises(InputError, match=r"labels .* must have the shape of raw"):
        opened(config_of(tmp_path))
    (volume,) = opened(config_of(tmp_path, axes="cyx"))
    assert (volume.raw.channels, volume.shape) == (2, (2, 20, 30))


@pytest.mark.parametrize("axes", ["TYX", "CYX", "ZYX", None])
def test_label_stacks_whose_slices_are_called_otherwise(tmp_path: Path, axes: str | None) -> None:
    stack = np.arange(16, dtype="u1")[:, None, None] + np.zeros((16, 20, 30), "u1")
    tifffile.imwrite(tmp_path / "raw.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    options = {"metadata": {"axes": axes}} if axes else {}
    tifffile.imwrite(tmp_path / "masks.tif", stack, imagej=True, **options)
    (volume,) = opened(config_of(tmp_path, "raw.tif", "masks.tif"))
    np.testing.assert_array_equal(volume.labels[:], volume.raw[:])


def test_labels_of_another_shape_name_the_key_that_helps(tmp_path: Path) -> None:
    np.save(tmp_path / "raw.npy", np.zeros((4, 20, 30), "u1"))
    labels = np.random.default_rng(0).integers(0, 9, (30, 20, 4)).astype("u1")
    np.save(tmp_path / "masks.npy", labels)
    with pytest.raises(InputError, match=r"got .* labels_axes says what its axes are"):
        opened(config_of(tmp_path, "raw.npy", "masks.npy"))
    (volume,) = opened(config_of(tmp_path, "raw.npy", "masks.npy", labels_axes="xyz"))
    np.testing.assert_array_equal(volume.labels[:][0], labels.transpose())


def test_palette_images_are_ids_as_labels(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 4, (20, 30)).astype("u1")
    write(tmp_path / "raw.png", 7)
    image = Image.fromarray(ids, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "masks.png")
    (volume,) = opened(config_of(tmp_path, "raw.png", "masks.png"))
    np.testing.assert_array_equal(volume.labels[:][0, 0], ids)
    assert open_volume(tmp_path / "masks.png").channels == 3
