# SPDX-License-Identifier: BSD-3-Clause
"""annotate-plan, annotate-import, and training from what they make, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
import yaml

from tests.project import Finished, fastseg, make_project


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path).parent


def plan(project: Path, *options: object) -> Finished:
    return fastseg("annotate-plan", project / "phantoms.h5:/raw", project / "plan", *options)


def annotate(project: Path) -> None:
    """Label every picture that has no labels yet, from the truth."""
    with h5py.File(project / "phantoms.h5") as file:
        truth = file["somata"][:]
    for path in (project / "plan").glob("z????.tif"):
        index = int(path.stem[1:])
        tifffile.imwrite(path.with_name(f"{path.stem}_labels.tif"), truth[index].astype("u2"))


def test_from_plan_to_a_network_and_on_to_where_it_is_unsure(project: Path) -> None:
    done = plan(project, "--slices", 4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:4] == ["z0003.tif", "z0009.tif", "z0015.tif", "z0021.tif"]
    annotate(project)
    (project / "plan/z0021_labels.tif").unlink()

    done = fastseg("annotate-import", project / "plan")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 slices, 12,288 voxels annotated, ")
    assert "planned, without labels yet: z0021\n" in done.stdout
    _, _, lines = done.stdout.partition("in a configuration:\n")
    entry = yaml.safe_load(lines)["data"]["train"]
    assert entry == [
        {
            "raw": f"{project}/phantoms.h5:/raw",
            "labels": f"{project}/plan/annotations.h5:/labels",
            "mask": f"{project}/plan/annotations.h5:/mask",
            "annotated": {"axis": "z", "slices": [3, 9, 15]},
        }
    ]
    config = yaml.safe_load((project / "run.yaml").read_text())
    config["data"]["train"] = entry
    (project / "run.yaml").write_text(yaml.safe_dump(config))

    checked = fastseg("check", project / "run.yaml", "--seconds", 0)
    assert checked.returncode == 0, checked.stderr
    assert "annotated 3 slices along z: 12,288 voxels" in checked.stdout
    trained = fastseg("train", project / "run.yaml", "train.steps=4")
    assert trained.returncode == 0, trained.stderr

    done = plan(project, "--slices", 2, "--run", project / "run", "--window", 16)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" bits; look first at (row, column) (") == 2
    stored = json.loads((project / "plan/plan.json").read_text())["slices"]
    assert len({s["index"] for s in stored}) == 6
    assert [s["window"] for s in stored[4:]] == [[16, 16]] * 2
    assert all(0 < s["score"] <= 1 and len(s["look_first"]) == 3 for s in stored[4:])


def test_a_slice_that_the_network_is_unsure_in_is_chosen(project: Path) -> None:
    """A network whose logit is 50 times its input, on data that are -1 or 1, but 0 in a square of slice 13."""
    assert fastseg("train", project / "run.yaml", "train.steps=1", "data.normalize=none").returncode == 0
    raw = np.where(np.random.default_rng(0).random((24, 64, 64)) < 0.5, -1, 1).astype("f4")
    raw[13, 32:48, 16:32] = 0
    with h5py.File(project / "phantoms.h5", "a") as file:
        file["plain"] = raw

    class Steep(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return 50 * image

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fastseg.methods.inference.build_network", lambda *_: Steep())
        patched.setattr(Steep, "load_state_dict", lambda *_: None)
        volume = f"{project}/phantoms.h5:/plain"
        options = ("--slices", 1, "--run", project / "run", "--window", 16, "--region", "z=6:20")
        done = fastseg("annotate-plan", volume, project / "plan", *options)
        patched.setattr("fastseg.commands.annotate.highest_slices", lambda *_: ([8], 3.5, 1.75))
        near = fastseg("annotate-plan", volume, project / "plan", *options)
    assert near.stdout.startswith(
        "no slice was left 3.5 from all others: some are only 1.75 apart\nz0014.tif"
    )
    assert done.returncode == 0, done.stderr
    # Of the 16 windows the tenth is one, which the square fills: 1 bit.
    assert done.stdout.startswith("z0013.tif  1.000 bits; look first at (row, column) (32, 16), ")


def test_a_second_call_goes_between_and_beside_the_first(project: Path) -> None:
    assert plan(project, "--slices", 1).stdout.startswith("z0012.tif\n")
    assert plan(project, "--slices", 2).stdout.startswith("z0004.tif\nz0019.tif\n")


def test_slices_by_hand_and_labels_of_others(project: Path) -> None:
    assert plan(project, "--at", "9,5").stdout.startswith("z0005.tif\nz0009.tif\n")
    assert plan(project, "--at", "5,7").stdout.startswith("z0007.tif\n")
    assert plan(project, "--at", "5").stdout == "all of --at 5 are planned already\n"
    annotate(project)
    (project / "plan/z0005_labels.tif").rename(project / "plan/z0011_labels.tif")
    done = fastseg("annotate-import", project / "plan")
    assert "slices: [7, 9, 11]" in done.stdout
    assert "planned, without labels yet: z0005\n" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--slices", 25), "--slices 25: of the 24 slices along z, 24 are not planned yet"),
        (("--slices", 2, "--axis", "t"), "--axis must be z, y or x, got t"),
        (("--slices", 2, "--region", "z=0"), "--region must look like z=0:64,x=100:356, each axis once"),
        (("--slices", 2, "--region", "z=0:99"), "the range z 0:99 must lie within 0:24"),
        (("--slices", 2, "--axes", "zy"), "axes must name each once"),
        ((), "give either --slices, how many, or --at, which ones"),
        (("--slices", 2, "--at", "5"), "give either --slices, how many, or --at, which ones"),
        (("--at", "5,b"), "--at must be numbers of slices, as in 5,9, got '5,b'"),
        (("--at", "5,24"), "--at 24: slices along z are numbered 0 to 23"),
        (("--at", "5", "--run", "nowhere"), "--run chooses slices by itself"),
        (("--slices", 2, "--run", "nowhere"), "nowhere holds no checkpoint: run fastseg train first"),
    ],
)
def test_unusable_options(project: Path, options: tuple[object, ...], message: str) -> None:
    done = plan(project, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (project / "plan").exists()


def test_a_file_in_place_of_the_folder_and_another_volume(project: Path) -> None:
    (project / "plan").write_text("")
    assert "plan must be a folder, it is a file" in plan(project, "--slices", 1).stderr
    (project / "plan").unlink()
    assert plan(project, "--slices", 1).returncode == 0
    done = fastseg("annotate-plan", project / "phantoms.h5:/somata", project / "plan", "--slices", 1)
    assert done.returncode == 2
    assert "holds a plan of volume" in done.stderr


def test_a_run_of_other_channels_is_refused(project: Path) -> None:
    assert fastseg("train", project / "run.yaml", "train.steps=1").returncode == 0
    with h5py.File(project / "phantoms.h5", "a") as file:
        file["two"] = np.zeros((2, 8, 32, 32), "u1")
    volume = f"{project}/phantoms.h5:/two"
    done = fastseg("annotate-plan", volume, project / "plan", "--slices", 1, "--run", project / "run")
    assert done.returncode == 2
    assert "two must have 1 channels, got 2" in done.stderr
