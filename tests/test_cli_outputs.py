# SPDX-License-Identifier: BSD-3-Clause
"""fastseg predict to the files of other programs: label maps, masks, probabilities, and a folder of them."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from fastseg.data.volumes import open_volume
from tests.project import fastseg

CONFIG = """\
output: run
data: {patch: [16, 16], classes: {dim: 1, bright: 5}, train: [{raw: images, labels: masks}]}
network: {width: 4, pooling: [2]}
train: {steps: 30, batch: 2, learning_rate: 0.02, device: cpu, augment: none}
predict: {threshold: 0.3}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of three sizes whose grey says the class, and a run that learnt it."""
    folder = tmp_path_factory.mktemp("outputs")
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for i in range(3):
        ids = np.array([0, 1, 5])[rng.integers(0, 3, (5 + i, 6))].repeat(8, 0).repeat(8, 1)
        imageio.imwrite(
            folder / f"images/cell{i}.png", (40 * ids + rng.integers(0, 30, ids.shape)).astype("u1")
        )
        imageio.imwrite(folder / f"masks/cell{i}_mask.png", ids.astype("u1"))
    (folder / "run.yaml").write_text(CONFIG.replace("run", f"{folder}/run", 1))
    done = fastseg("train", folder / "run.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("masks/cell") == 0
    return folder


def predict(trained: Path, *options: object) -> None:
    done = fastseg("predict", trained / "run", *options)
    assert done.returncode == 0, done.stderr


def test_a_label_map_is_one_image_of_the_classes_ids(trained: Path, tmp_path: Path) -> None:
    raw = trained / "images/cell1.png"
    for name in ("all.h5", "map.tif", "map.png", "map.npy"):
        predict(trained, "--raw", raw, "--output", tmp_path / name)
    predict(trained, "--raw", raw, "--output", tmp_path / "masks.tif", "--what", "masks")
    predict(trained, "--raw", raw, "--output", tmp_path / "p.ome.tif", "--what", "probability")
    masks = open_volume(f"{tmp_path}/all.h5:/segmentation")[:][:, 0]
    probability = open_volume(f"{tmp_path}/all.h5:/probability")[:][:, 0]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "masks.tif"), masks)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "p.ome.tif"), probability.astype("f4"))
    assert masks.sum(0).max() == 1  # exclusive classes
    assert (probability.sum(0) <= 1.001).all()
    np.testing.assert_array_equal(masks.any(0), probability.astype("f4").sum(0) >= 0.3)
    ids = tifffile.imread(tmp_path / "map.tif")
    assert ids.shape == masks.shape[1:]
    best = np.array([1, 5])[np.where(masks, probability, -1).argmax(0)] * masks.any(0)
    np.testing.assert_array_equal(ids, best)
    np.testing.assert_array_equal(imageio.imread(tmp_path / "map.png"), ids)
    np.testing.assert_array_equal(np.load(tmp_path / "map.npy")[0], ids)
    truth = imageio.imread(trained / "masks/cell1_mask.png")
    assert (ids == truth).mean() > 0.6  # chance is a third
    assert {p.name for p in tmp_path.iterdir()} == {
        *("all.h5", "map.tif", "map.png", "map.npy", "masks.tif", "p.ome.tif")
    }


def test_instances_are_the_connected_parts_of_the_label_map(trained: Path, tmp_path: Path) -> None:
    raw = trained / "images/cell1.png"
    predict(trained, "--raw", raw, "--output", tmp_path / "map.tif")
    predict(
        trained, "--raw", raw, "--output", tmp_path / "objects.tif", "--what", "instances", "--smallest", 20
    )
    ids, objects = tifffile.imread(tmp_path / "map.tif"), tifffile.imread(tmp_path / "objects.tif")
    numbers = np.unique(objects[objects > 0])
    assert len(numbers) > 2
    assert numbers.tolist() == list(range(1, len(numbers) + 1))
    for number in numbers:
        inside = objects == number
        assert inside.sum() >= 20
        assert len(np.unique(ids[inside])) == 1
    assert not ids[objects == 0].all()
    apart = ("--what", "instances", "--set", "predict.instances=distance")
    predict(trained, "--raw", raw, "--output", tmp_path / "apart.tif", *apart)
    cut = tifffile.imread(tmp_path / "apart.tif")
    assert np.array_equal(cut > 0, ids > 0)
    assert cut.max() >= len(numbers)
    assert all(len(np.unique(ids[cut == number])) == 1 for number in range(1, cut.max() + 1))
    assert {p.name for p in tmp_path.iterdir()} == {"map.tif", "objects.tif", "apart.tif"}


def test_one_ome_zarr_image_of_ids(trained: Path, tmp_path: Path) -> None:
    raw = trained / "images/cell1.png"
    for name in ("map.tif", "map.ome.zarr"):
        predict(trained, "--raw", raw, "--output", tmp_path / name, "--what", "labels")
    found = open_volume(tmp_path / "map.ome.zarr")
    np.testing.assert_array_equal(found[:][0, 0], tifffile.imread(tmp_path / "map.tif"))
    assert {p.name for p in tmp_path.iterdir()} == {"map.tif", "map.ome.zarr"}


def test_a_folder_is_segmented_into_a_folder(trained: Path, tmp_path: Path) -> None:
    predict(trained, "--raw", trained / "images", "--output", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"cell{i}.tif" for i in range(3)]
    for i in range(3):
        expected = imageio.imread(trained / f"images/cell{i}.png").shape
        assert tifffile.imread(tmp_path / f"out/cell{i}.tif").shape == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--output", "x.jpg"), "--output must end in one of .h5, .hdf5, .zarr, .ome.tif"),
        (("--output", "folder"), "or be a folder for the files of a folder --raw, got folder"),
        (
            ("--output", "x.tif", "--what", "mask"),
            "--what must be one of labels, masks, probability, instances, got mask",
        ),
        (("--output", "x.tif", "--smallest", "3"), "--smallest goes with --what instances"),
        (("--output", "x.h5", "--what", "masks"), "--what goes with an --output of one array"),
        (("--output", "x.png", "--what", "masks"), "x.png: a PNG holds one image of one channel"),
    ],
)
def test_refusals(trained: Path, options: tuple[str, ...], message: str) -> None:
    done = fastseg("predict", trained / "run", "--raw", trained / "images/cell1.png", *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
