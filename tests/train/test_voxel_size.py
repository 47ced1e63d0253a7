# SPDX-License-Identifier: BSD-3-Clause
"""Runs whose volumes are stored at several voxel sizes: what they see, what they write, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from fastseg.commands.infer import predict_run
from fastseg.data.resampled import ResampledVolume
from fastseg.data.volumes import open_volume
from fastseg.methods.config_file import load_config
from fastseg.train.checkpoint import RunFolder
from fastseg.train.inputs import open_training
from tests.methods.tissue import scene
from tests.project import fastseg
from tests.train.several_sizes import train_on_several_sizes


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_several_sizes(tmp_path_factory.mktemp("voxel_size"))


def test_what_training_sees(trained: Path) -> None:
    config = load_config(trained / "run.yaml")
    fine, coarse = open_training(config)
    assert isinstance(fine.raw, ResampledVolume)
    assert (fine.shape, coarse.shape) == ((18, 48, 44), (18, 48, 48))
    assert fine.raw.voxel_size == coarse.raw.voxel_size == (2.0, 2.0, 2.0)
    assert not isinstance(coarse.raw, ResampledVolume)
    stored = open_volume(f"{trained}/fine.h5:/raw")[:][0, :, :, 8:].astype(np.float64)
    assert np.array_equal(fine.raw[:][0], np.rint(stored.reshape(18, 48, 2, 44, 2).mean(axis=(2, 4))))
    target, codes = fine.read_target((0, 0, 0), fine.shape)
    labels = open_volume(f"{trained}/fine.h5:/labels")[:][0, :, 1::2, 9::2]
    assert np.array_equal(target[0], labels)
    assert np.array_equal(np.flatnonzero(codes[0].any(axis=(1, 2))), np.arange(0, 18, 3))
    dice = json.loads((trained / "run/validation.jsonl").read_text().splitlines()[-1])["dice"]
    assert dice > 0.5


@pytest.mark.long
def test_a_resumed_run_gives_the_same_numbers(trained: Path, tmp_path: Path) -> None:
    config = trained / "run.yaml"
    whole, resumed = RunFolder(trained / "run"), RunFolder(tmp_path / "resumed")
    assert fastseg("train", config, f"output={resumed.path}").returncode == 0
    Path(resumed.checkpoints()[-1][1]).unlink()
    assert fastseg("train", config, f"output={resumed.path}", "--resume").returncode == 0
    for name in ("log.jsonl", "validation.jsonl"):
        assert Path(resumed.file(name)).read_text() == Path(whole.file(name)).read_text()
    first, second = (run.load()["network"] for run in (whole, resumed))
    assert all(torch.equal(first[key], second[key]) for key in first)
    # Volumes that stay on the device and those that are read patch by patch are the same ones.
    read = tmp_path / "read"
    assert fastseg("train", config, f"output={read}", "data.resident=false").returncode == 0
    assert (read / "log.jsonl").read_text() == Path(whole.file("log.jsonl")).read_text()
    Path(resumed.checkpoints()[-1][1]).unlink()
    other = fastseg("train", config, f"output={resumed.path}", "--resume", "data.voxel_size=[2, 2, 1]")
    assert other.returncode == 2
    assert "was begun with data.voxel_size = [2.0, 2.0, 2.0]" in other.stderr


def test_check_shows_the_factor(trained: Path) -> None:
    told = fastseg("check", "--seconds", 0, trained / "run.yaml")
    assert told.returncode == 0, told.stderr
    assert "voxel (2.0, 2.0, 2.0) um, 1 x 2 x 2 times that of the file, (18, 96, 88) voxels" in told.stdout
    assert told.stdout.count("times that of the file") == 2  # training and test


CHANGES = {
    "no size": (
        ["data.train.1.voxel_size=null"],
        "data.voxel_size needs the voxel size of every volume, and ",
    ),
    "absurd": (["data.voxel_size=[2, 2000, 2]"], "data.voxel_size: 2000 along y is 2e+03 times the 1 of "),
    "2D": (
        ["data.patch=[32, 32]", "network.pooling=[2, 2]", "data.voxel_size=[4, 2, 2]"],
        "data.voxel_size must be null along z, across the slices of a 2D network, or the 2 of ",
    ),
    "negative": (["data.voxel_size=[2, -1, 2]"], "data.voxel_size.1: "),
    "two numbers": (["data.voxel_size=[2, 2]"], "data.voxel_size"),
    "sparse": (
        ["method=sparse_2d3d", "sparse_2d3d={patch: [32, 32], steps: 2}", "data.voxel_size=[4, 2, 2]"],
        "data.voxel_size must be null along z, across the slices of a 2D network",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_refusals(trained: Path, tmp_path: Path, case: str) -> None:
    overrides, message = CHANGES[case]
    done = fastseg("train", trained / "run.yaml", f"output={tmp_path / 'run'}", *overrides)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_else_it_says(trained: Path) -> None:
    run, raw = trained / "run", trained / "coarse.npy"
    done = fastseg("predict", run, "--raw", raw, "--output", trained / "no.h5")
    assert (done.returncode, "coarse.npy states none" in done.stderr) == (2, True)
    for text in ("2,2", "2,0,2", "2,nan,2", "a,b,c"):
        done = fastseg("predict", run, "--raw", raw, "--output", trained / "no.h5", "--voxel-size", text)
        assert (done.returncode, "--voxel-size must be micrometres along z,y,x" in done.stderr) == (2, True)
    done = fastseg("predict", run, "--voxel-size", "2,2,2")
    assert (done.returncode, "--voxel-size goes with --raw" in done.stderr) == (2, True)
    done = fastseg("annotate-plan", f"{trained}/fine.h5:/raw", trained / "plan", "--slices", 2, "--run", run)
    assert (done.returncode, "plan without --run" in done.stderr) == (2, True)


def test_2d_networks_are_resampled_within_their_slices(trained: Path, tmp_path: Path) -> None:
    two = ["data.patch=[32, 32]", "network.pooling=[2, 2]", "data.voxel_size=[null, 2, 2]", "train.steps=6"]
    done = fastseg("train", trained / "run.yaml", f"output={tmp_path / 'run'}", *two)
    assert done.returncode == 0, done.stderr
    (first, _) = predict_run(str(tmp_path / "run"))
    assert open_volume(f"{first}:/segmentation").shape == (18, 80, 96)


def test_both_phases_of_sparse_2d3d(trained: Path, tmp_path: Path) -> None:
    sparse = ["method=sparse_2d3d", "sparse_2d3d={patch: [32, 32], steps: 4, batch: 2}", "train.steps=4"]
    done = fastseg("train", trained / "run.yaml", f"output={tmp_path / 'run'}", *sparse)
    assert done.returncode == 0, done.stderr
    pseudo = open_volume(f"{tmp_path}/run/pseudo_labels/train_0.h5:/segmentation")
    assert (pseudo.shape, pseudo.voxel_size) == ((18, 48, 44), (2.0, 2.0, 2.0))


def test_patch_contrast_writes_masks_of_the_size_of_its_images(tmp_path: Path) -> None:
    config = scene(tmp_path)
    entry = 'data.train=[{raw: "images/*.png", voxel_size: [1, 0.5, 0.5]}]'
    options = [
        "data.voxel_size=[null, 0.7, 0.7]",
        "data.patch=[48, 48]",
        "train.steps=4",
        f"output={tmp_path / 'run'}",
    ]
    done = fastseg("train", config, entry, *options)
    assert done.returncode == 0, done.stderr
    for i in range(4):
        image, mask = (tmp_path / "images" / f"tissue_{i}.png", tmp_path / "run/masks" / f"tissue_{i}.png")
        assert imageio.imread(mask).shape == imageio.imread(image).shape[:2]


def test_the_source_is_measured_at_the_size_that_the_target_has(trained: Path, tmp_path: Path) -> None:
    config = load_config(trained / "run.yaml")
    stop = ["train.stop={rule: morphology, property: area, every: 1}", "train.steps=2", "data.validation=[]"]
    target = "data.target=[{raw: coarse.npy, voxel_size: [2, 2, 2]}]"
    fine = "data.train=[{raw: fine.h5:/raw, labels: fine.h5:/labels}]"
    done = fastseg("train", trained / "run.yaml", f"output={tmp_path / 'run'}", *stop, target, fine)
    assert done.returncode == 0, done.stderr
    (area,) = json.loads((tmp_path / "run/source_morphology.json").read_text())["values"]
    path = tmp_path / "stored.yaml"
    path.write_text((trained / "run.yaml").read_text().replace("voxel_size: [2, 2, 2]\n  train", "train"))
    done = fastseg(
        "train",
        path,
        f"output={tmp_path / 'as_stored'}",
        f"data.root={config.data.root}",
        *stop,
        target,
        fine,
    )
    assert done.returncode == 0, done.stderr
    (as_stored,) = json.loads((tmp_path / "as_stored/source_morphology.json").read_text())["values"]
    assert as_stored / area == pytest.approx(4, rel=0.15)
