# SPDX-License-Identifier: BSD-3-Clause
"""The checkpoint chosen by the shape of objects in unlabelled images: which it is, and that labels decide nothing."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from fastseg.data.volumes import open_volume
from fastseg.methods import stopping
from fastseg.methods.config_file import load_config
from fastseg.methods.stopping import MorphologyChooser
from fastseg.methods.supervised.training import prepare
from fastseg.shapes import object_property
from fastseg.train.checkpoint import RunFolder
from fastseg.train.ranks import Ranks
from tests.project import fastseg, make_project

TARGET = "raw: phantoms.h5:/raw, region: {z: [12, 24]}"
WITHHELD = f"data.target=[{{{TARGET}}}]"
GIVEN = f"data.target=[{{{TARGET}, labels: phantoms.h5:/somata}}]"
WRONG = f"data.target=[{{{TARGET}, labels: phantoms.h5:/wrong}}]"
# An epoch of 16 x 64 x 64 voxels is four steps of two patches of 8 x 32 x 32.
SETTINGS = ["train.steps=24", "train.learning_rate=0.02", "train.precision=fp32", "train.stop.every=1"]
STOP = "train.stop.rule=morphology"


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "validation.jsonl").open()]


def train(config: Path, name: str, *overrides: str) -> Path:
    run = config.parent / name
    done = fastseg("train", config, f"output={run}", STOP, *SETTINGS, *overrides)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = make_project(tmp_path)
    with h5py.File(tmp_path / "phantoms.h5", "r+") as file:
        file["wrong"] = np.random.default_rng(0).permutation(file["somata"][:].ravel()).reshape(24, 64, 64)
    return path


@pytest.mark.long
@pytest.mark.parametrize("more", [[], ["data.patch=[32, 32]", "network.pooling=[2, 2]"]], ids=["3D", "2D"])
def test_the_same_checkpoint_is_chosen_whatever_the_target_labels_say(config: Path, more: list[str]) -> None:
    runs = {
        name: train(config, name, target, *more)
        for name, target in (("withheld", WITHHELD), ("given", GIVEN), ("wrong", WRONG))
    }
    bests = {name: RunFolder(run).load_for_prediction("best") for name, run in runs.items()}
    for name in ("given", "wrong"):
        assert bests[name]["step"] == bests["withheld"]["step"]
        for key, tensor in bests["withheld"]["network"].items():
            assert torch.equal(bests[name]["network"][key], tensor)
    reported = {"target_dice", "target_iou"}
    plain = rows(runs["withheld"])
    assert not reported & set(plain[0])
    for name in ("given", "wrong"):
        assert [{k: v for k, v in row.items() if k not in reported} for row in rows(runs[name])] == plain
    assert rows(runs["given"])[-1]["target_dice"] > rows(runs["wrong"])[-1]["target_dice"]
    nearest = min(plain, key=lambda row: row["morphology_distance"])
    assert bests["withheld"]["step"] == nearest["step"]


@pytest.mark.long
def test_it_measures_what_predict_writes_and_the_labels(config: Path) -> None:
    run = train(config, "run", GIVEN, "data.train.0.annotated=null")
    folder = config.parent
    done = fastseg(
        "predict",
        run,
        "--raw",
        folder / "phantoms.h5:/raw",
        "--output",
        folder / "out.h5",
        "--region",
        "z=12:24",
        "--set",
        "predict.checkpoint=newest",
    )
    assert done.returncode == 0, done.stderr
    found = object_property([open_volume(f"{folder}/out.h5:/segmentation")[:][0]], "solidity")
    with h5py.File(folder / "phantoms.h5") as file:
        labels = file["somata"][:16]
    expected = object_property([labels], "solidity")
    stored = json.loads((run / stopping.SOURCE_FILE).read_text())
    assert (stored["values"], stored["components"]) == ([expected], "volume")
    last = rows(run)[-1]
    assert last["target_solidity"] == pytest.approx(found, abs=1e-12)
    assert last["morphology_distance"] == pytest.approx(abs(found - expected), abs=1e-12)


@pytest.mark.long
def test_annotated_slices_are_measured_by_themselves(config: Path) -> None:
    with h5py.File(config.parent / "phantoms.h5", "r+") as file:
        labels, mask = file["somata"][:], np.zeros((24, 64, 64), "u1")
        mask[[0, 4, 8]], mask[5, :32], mask[6] = 1, 1, 2
        file["mask"] = mask
    expected = object_property([labels[[0, 4, 8]]], "solidity", components="slices")
    slices = "data.train.0.annotated={slices: [0, 4, 8]}"
    by_mask = ["data.train.0.annotated=null", "data.train.0.mask=phantoms.h5:/mask"]
    for name, overrides in (("slices", [slices]), ("mask", by_mask)):
        run = train(config, name, WITHHELD, *overrides)
        stored = json.loads((run / stopping.SOURCE_FILE).read_text())
        assert (stored["values"], stored["components"]) == ([expected], "slices")


def test_ignored_labels_are_no_objects(config: Path) -> None:
    with h5py.File(config.parent / "phantoms.h5", "r+") as file:
        labels = file["somata"][:]
        labels[:, 40:] = 999
        file["partly"] = labels
    run = train(
        config,
        "run",
        WITHHELD,
        "data.train.0.labels=phantoms.h5:/partly",
        "data.ignore_label=999",
        "data.train.0.annotated=null",
    )
    expected = object_property([(labels[:16] > 0) & (labels[:16] != 999)], "solidity")
    assert json.loads((run / stopping.SOURCE_FILE).read_text())["values"] == [expected]


def test_every_class_counts_alike(config: Path) -> None:
    with h5py.File(config.parent / "phantoms.h5", "r+") as file:
        labels = file["somata"][:]
        kinds = np.where(labels > 0, 1 + labels % 2, 0).astype("u1")
        file["kinds"] = kinds
    run = train(
        config,
        "run",
        WITHHELD,
        "data.train.0.labels=phantoms.h5:/kinds",
        "data.classes=[1, 2]",
        "data.train.0.annotated=null",
        "train.stop.property=area_ratio",
    )
    expected = [object_property([kinds[:16] == c], "area_ratio") for c in (1, 2)]
    assert json.loads((run / stopping.SOURCE_FILE).read_text())["values"] == expected


def test_patience_ends_a_run_that_comes_no_nearer(config: Path) -> None:
    run = train(config, "run", WITHHELD, "train.stop.patience=1", "train.stop.gain=10")
    assert [row["step"] for row in rows(run)] == [4, 8]


@pytest.mark.long
def test_looks_begin_after_a_share_of_the_steps(config: Path) -> None:
    run = train(config, "run", WITHHELD, "train.stop.after=0.4")  # 9.6 steps
    assert [row["step"] for row in rows(run)] == [12, 16, 20, 24]
    nearest = min(rows(run), key=lambda row: row["morphology_distance"])
    assert RunFolder(run).load_for_prediction("best")["step"] == nearest["step"]
    run = train(config, "late", WITHHELD, "train.stop.after=0.99")
    assert [row["step"] for row in rows(run)] == [24]
    refused = fastseg("train", config, STOP, *SETTINGS, WITHHELD, "train.stop.after=1")
    assert refused.returncode != 0
    assert "train.stop.after: input should be less than 1, got 1" in refused.stderr


@pytest.mark.long
def test_source_labels_are_measured_once(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train(config, "run", WITHHELD)
    (Path(run) / "checkpoints" / "step_00000024.pt").unlink()
    before = rows(run)

    def refuse(*_: object) -> None:
        raise AssertionError("the labels were measured again")

    monkeypatch.setattr(stopping, "measure_labels", refuse)
    done = fastseg("train", config, f"output={run}", STOP, *SETTINGS, WITHHELD, "--resume")
    assert done.returncode == 0, done.stderr
    assert rows(run) == before
    (run / stopping.SOURCE_FILE).unlink()
    with pytest.raises(AssertionError, match="measured again"):
        fastseg("train", config, f"output={run}", STOP, *SETTINGS, WITHHELD, "--resume")


def test_both_networks_of_sparse_2d3d_choose_by_it(config: Path) -> None:
    more = ["method=sparse_2d3d", "sparse_2d3d={steps: 6, batch: 2, patch: [32, 32]}", GIVEN]
    run = train(config, "run", *more)
    for folder in (run, run / "slices"):
        found = rows(folder)
        assert {"target_solidity", "morphology_distance"} <= set(found[0])
        nearest = min(found, key=lambda row: row["morphology_distance"])
        assert RunFolder(folder).load_for_prediction("best")["step"] == nearest["step"]
        # Pseudo-labels are no labels.
        assert json.loads((folder / stopping.SOURCE_FILE).read_text())["components"] == "slices"


@pytest.mark.long
def test_validation_is_for_the_record(config: Path) -> None:
    held_out = "data.validation=[{raw: phantoms.h5:/raw, labels: phantoms.h5:/somata, region: {z: [12, 24]}}]"
    run = train(config, "run", WITHHELD, held_out, "train.validate_every=6")
    plain = train(config, "plain", WITHHELD)
    assert [row["step"] for row in rows(run) if "dice" in row] == [6, 12, 18, 24]
    assert [row["step"] for row in rows(run) if "morphology_distance" in row] == [4, 8, 12, 16, 20, 24]
    steps = [RunFolder(r).load_for_prediction("best")["step"] for r in (run, plain)]
    assert steps[0] == steps[1]


def test_processes_share_a_target(config: Path) -> None:
    class Alone(Ranks):
        def sum(self, values: torch.Tensor) -> torch.Tensor:
            added.append(values.clone())
            return values

        def from_first(self, value: object) -> object:
            return value

    added: list[torch.Tensor] = []
    loaded = load_config(config, [STOP, WITHHELD, "predict.batch=1", "train.precision=fp32"])
    _, volumes, task = prepare(loaded, Ranks())
    run = RunFolder(config.parent / "run")
    task.network.eval()
    masks = {}
    for rank, count in ((0, 1), (0, 2), (1, 2)):
        added.clear()
        chooser = MorphologyChooser(loaded, volumes, task.network, Alone(0, 1), run)
        chooser.ranks, block = Alone(rank, count), 1 << 14
        chooser.tilings = [t.__class__(**{**t.__dict__, "block_voxels": block}) for t in chooser.tilings]
        chooser._segment(chooser.targets[0].raw, chooser.predictors[0], chooser.tilings[0])
        masks[rank, count] = added[0]
    assert masks[0, 1].any()
    assert torch.equal(masks[0, 2] + masks[1, 2], masks[0, 1])


MISTAKES = {
    STOP: "train.stop needs data.target, the volumes to judge by",
    "method=patch_contrast": "train.stop: morphology compares with labels, and patch_contrast learns none",
    "train.stop={gain: 1}": "train.stop: rule validation needs patience",
    "train.stop={rule: morphology, property: orientation, within: volume}": "property orientation is of slices",
    "train.stop={rule: morphology, property: beauty}": "train.stop.property: input should be 'solidity', ",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_each_mistake_is_one_clear_line(config: Path, override: str) -> None:
    more = [STOP, WITHHELD, "data.patch=[32, 32]"] if override.startswith("method") else []
    done = fastseg("train", config, override, *more)
    assert (done.returncode, MISTAKES[override] in done.stderr) == (2, True), done.stderr


def test_labels_that_cannot_be_compared_with(config: Path) -> None:
    for overrides, message in (
        (["train.stop.within=volume"], "train.stop.within: volume needs labels throughout"),
        (["train.stop.smallest=100000"], "which hold no object of foreground larger than 100000"),
    ):
        done = fastseg("train", config, STOP, *SETTINGS, WITHHELD, *overrides)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    np.save(config.parent / "two.npy", np.zeros((2, 24, 64, 64), "u1"))
    done = fastseg("train", config, STOP, "data.target=[{raw: two.npy}]")
    assert "target volumes must agree in channels with the first" in done.stderr
