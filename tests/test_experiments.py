# SPDX-License-Identifier: BSD-3-Clause
"""The experiments under benchmarks/, cut down to a few steps: rows, going on, table and plot."""

from __future__ import annotations

import argparse
import csv
import importlib
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import h5py
import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from fastseg.train.checkpoint import RunFolder
from tests.methods.tissue import draw_image

EXPERIMENTS = Path(__file__).parents[1] / "benchmarks" / "experiments"


@pytest.fixture
def sparse_2d3d(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXPERIMENTS)
    module = importlib.import_module("sparse_2d3d")
    whole = module.phantoms

    def short(seed: int, full: bool):
        data = whole(seed, full)
        values = {**data.config, "train": {"steps": 2}, "sparse_2d3d": {"patch": [32, 32], "steps": 2}}
        values["data"] = {**values["data"], "patch": [8, 32, 32]}
        values["network"] = {"width": 2, "pooling": [2], "norm": "batch"}
        return replace(data, depth=16, config=values)

    monkeypatch.setitem(module.SETS, "phantoms", short)
    monkeypatch.setattr(module, "PHANTOM", (16, 48, 48))
    return module


def rows_of(
    experiment: ModuleType, monkeypatch: pytest.MonkeyPatch, results: Path, *arguments: str
) -> list[dict[str, str]]:
    """The rows that there are after a call."""
    monkeypatch.setattr(sys, "argv", [experiment.__name__, *arguments])
    experiment.main()
    with results.open(newline="") as file:
        return list(csv.DictReader(file))


def write_stack(path: Path, shape: tuple[int, int, int]) -> None:
    """One image in all slices: raw, and its objects, mito."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image, truth = draw_image(0, shape[1:])
    with h5py.File(path, "w") as file:
        file["raw"] = np.broadcast_to(image.mean(-1).astype("u1"), shape)
        file["mito"] = np.broadcast_to(truth.astype("u1"), shape)


def test_annotated_slices_lie_in_equal_parts(sparse_2d3d: ModuleType) -> None:
    assert sparse_2d3d.annotated(1, 96, 0) == [48]
    assert sparse_2d3d.annotated(4, 96, 0) == [12, 36, 60, 84]
    assert sparse_2d3d.annotated(4, 96, 1) == [6, 30, 54, 78]


def test_three_arms_make_three_rows_once(
    sparse_2d3d: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "rows.csv"
    common = ["--folder", str(tmp_path / "runs"), "--results", str(results)]
    run = ["run", "--data", "phantoms", "--slices", "2", "--seeds", "0", *common]
    for _ in range(2):
        rows = rows_of(sparse_2d3d, monkeypatch, results, *run)
        assert [row["arm"] for row in rows] == ["2d", "pseudo", "sparse"]
    voxels = {sum(int(row[k]) for k in row if k.endswith(("positive", "negative"))) for row in rows}
    assert voxels == {16 * 48 * 48}
    capsys.readouterr()
    monkeypatch.setattr(
        sys, "argv", ["sparse_2d3d.py", "show", *common, "--plot", str(tmp_path / "plot.png")]
    )
    sparse_2d3d.main()
    assert capsys.readouterr().out.count("\n| 2 | ") == 3
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.fixture
def patch_contrast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The experiment on four images of disks, with windows to match."""
    pytest.importorskip("skimage")
    monkeypatch.syspath_prepend(EXPERIMENTS)
    module = importlib.import_module("patch_contrast")
    folder = tmp_path / "sets" / "he_dsb2018"
    folder.mkdir(parents=True)
    for i in range(4):
        image, truth = draw_image(i)
        imageio.imwrite(folder / f"tissue_{i}.png", image)
        tifffile.imwrite(folder / f"tissue_{i}_instances.tif", truth.astype("u2"))
    configure = module.configure

    def small(*arguments: object):
        config = configure(*arguments)
        changes = {
            "data": config.data.model_copy(update={"patch": [64, 64]}),
            "train": config.train.model_copy(update={"batch": 2, "steps": 4}),
            "patch_contrast": config.patch_contrast.model_copy(update={"patch_size": 12, "stride": 6}),
        }
        return config.model_copy(update=changes)

    monkeypatch.setattr(module, "configure", small)
    return module


@pytest.mark.long
def test_patch_contrast_has_a_row_per_arm_and_seed_once(
    patch_contrast: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "rows.csv"
    common = ["--folder", str(tmp_path / "runs"), "--results", str(results)]
    run = ["run", "--data", "dsb2018", "--root", str(tmp_path / "sets"), "--seeds", "0", "1", "--quiet"]
    for _ in range(2):
        rows = rows_of(patch_contrast, monkeypatch, results, *run, *common)
        found = [(row["arm"], row["seed"]) for row in rows]
        learnt = [(arm, seed) for seed in "01" for arm in ("unlabelled", "labelled", "ceiling")]
        assert found == [("grey", ""), ("otsu", ""), ("kmeans", ""), *learnt]
    # Images 0 and 3 are for validation.
    assert {row["images"] for row in rows} == {"2"}
    assert float(rows[0]["dice"]) > 0.9
    for unlabelled, _, ceiling in (rows[3:6], rows[6:9]):
        assert float(ceiling["dice"]) >= float(unlabelled["dice"])
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["patch_contrast.py", "show", *common])
    patch_contrast.main()
    assert capsys.readouterr().out.count("\n| dsb2018 | ") == 6


def test_the_labelled_half_of_a_volume_is_not_tested(patch_contrast: ModuleType) -> None:
    shape = (4, 6, 10)
    image = patch_contrast.Image(Path(), np.zeros((*shape, 1)), np.ones(shape, bool), False)
    left = np.zeros(shape, bool)
    left[..., :5] = True
    assert patch_contrast.score([image], [left], 0) == [1.0]
    assert patch_contrast.score([image], [left], 1) == [0.0]


@pytest.mark.long
def test_region_contrast_has_a_row_per_arm_labels_and_seed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EXPERIMENTS)
    module = importlib.import_module("region_contrast")
    folder = tmp_path / "sets" / "em_kidney_gbm"
    folder.mkdir(parents=True)
    for i in range(1, 7):
        image, truth = draw_image(i, (512, 640))
        imageio.imwrite(folder / f"photo{i}_image.png", image.mean(-1).astype("u1"))
        imageio.imwrite(folder / f"photo{i}_gbm.png", truth.astype("u1") * 255)
    results = tmp_path / "rows.csv"
    sizes = ["--pretrain-steps", "2", "--steps", "2", "--width", "2", "--patch", "48", "--batch", "2"]
    common = ["--folder", str(tmp_path / "runs"), "--results", str(results)]
    arms = ["none", "both", "masked"]
    run = ["run", "--data", "kidney", "--root", f"{tmp_path}/sets", "--seeds", "1", "--quiet"]
    run += ["--arms", *arms]
    for _ in range(2):
        rows = rows_of(module, monkeypatch, results, *run, *sizes, *common)
        found = [(row["arm"], row["labels"], row["seed"]) for row in rows]
        assert found == [(arm, labels, "1") for arm in arms for labels in ("0.25", "1", "4")]
    assert {row["pretrain_steps"] for row in rows} == {"0", "2"}
    other = ["--learning-rate", "0.001", "--counts", "1"]
    rows = rows_of(module, monkeypatch, results, *run, *sizes, *common, *other)
    assert [(row["labels"], row["learning_rate"]) for row in rows[9:]] == [("0.25", "0.001")] * 3
    for seed in range(3):  # nothing that is tested on is ever labelled
        for count in (1, 4):
            labelled, tested = module.kidney_split(seed, count)
            assert len(labelled) == count
            assert sorted(labelled + tested) == [*range(6)]
        assert min(module.vnc_split(seed, 1)[1]) - max(module.vnc_split(seed, 1)[0]) >= 2
    capsys.readouterr()
    show = ["region_contrast.py", "show", *common, "--plot", str(tmp_path / "plot.png")]
    monkeypatch.setattr(sys, "argv", show)
    module.main()
    assert capsys.readouterr().out.count("| regions, both | ") == 2  # a table for each rate
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.long
def test_domain_adaptation_has_a_row_per_arm_and_seed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EXPERIMENTS)
    module = importlib.import_module("domain_adaptation")
    # Put back what a call replaces.
    monkeypatch.setattr(module.supervised, "morphology_chooser", module.supervised.morphology_chooser)
    for name, shape in (
        ("train", (128, 80, 80)),
        ("stack1_z00-14", (15, 80, 80)),
        ("stack2_unlabelled", (4, 80, 80)),
    ):
        write_stack(tmp_path / "sets" / ("em_lucchi" if name == "train" else "em_vnc") / f"{name}.h5", shape)
    vnc = replace(module.DOMAINS["vnc"], target={}, test={})
    monkeypatch.setitem(module.DOMAINS, "vnc", vnc)
    results = tmp_path / "rows.csv"
    common = ["--folder", str(tmp_path / "runs"), "--results", str(results)]
    sizes = ["--steps", "4", "--looks", "2", "--width", "2", "--patch", "32", "--batch", "2", "--pixel", "5"]
    run = ["run", "--data", "lucchi-vnc", "--root", str(tmp_path / "sets"), "--seeds", "1", "--quiet"]
    for _ in range(2):
        rows = rows_of(module, monkeypatch, results, *run, *sizes, *common)
        assert [row["arm"] for row in rows] == [*module.ARMS]
    for row in rows:
        assert row["looks"] == "2"
        assert row["iou_best"] >= max(row[f"iou_{name}"] for name in ("stop", "late", "last"))
    for pair in module.PAIRS:  # a test slice among the images of the target is refused
        options = argparse.Namespace(
            steps=4, batch=2, patch=32, width=2, pixel=5, learning_rate=1e-3, root=tmp_path, folder=tmp_path
        )
        config = module.configured(pair, "ynet", 0, options)
        assert not config.domain_adaptation.transductive
    monkeypatch.setattr(
        sys, "argv", ["domain_adaptation.py", "show", *common, "--plot", str(tmp_path / "plot.png")]
    )
    module.main()
    assert capsys.readouterr().out.count("| Attention Y-Net | ") == 2  # of the pair, and of all
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_stopping_has_a_row_per_rule_and_network_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(EXPERIMENTS)
    module = importlib.import_module("stopping")
    # Put back what a call replaces.
    monkeypatch.setattr(module.supervised, "morphology_chooser", module.supervised.morphology_chooser)
    for name in ("looks", "properties"):
        monkeypatch.setattr(module.RecordingChooser, name, getattr(module.RecordingChooser, name))
    whole = module.lucchi

    def short(seed: int, full: bool):
        data = whole(seed, full)
        values = {**data.config, "train": {"steps": 4}, "sparse_2d3d": {"patch": [32, 32], "steps": 4}}
        values |= {"network": {"width": 2, "pooling": [2]}}
        return replace(data, config={**values, "data": {**values["data"], "patch": [16, 32, 32]}})

    monkeypatch.setattr(module, "lucchi", short)
    write_stack(tmp_path / "sets" / "em_lucchi" / "train.h5", (128, 96, 128))
    results = tmp_path / "rows.csv"
    common = ["--folder", str(tmp_path / "runs"), "--results", str(results), "--root", str(tmp_path / "sets")]
    run = ["run", "--slices", "4", "--seeds", "1", "--looks", "2", "--quiet", *common]
    for call in range(3):
        if call == 2:  # after a kill between two rows
            results.write_text("".join(results.read_text().splitlines(keepends=True)[:-3]))
        rows = rows_of(module, monkeypatch, results, *run)
        found = [(row["network"], row["rule"]) for row in rows]
        assert found == [(network, rule) for network in module.NETWORKS for rule in module.RULES]
    for row in rows:
        assert row["looks"] == "2"
        assert row["step_last"] == "4"
        assert float(row["dice_best"]) >= max(float(row["dice_stop"]), float(row["dice_last"]))
    # What the experiment calls the stop by solidity is the checkpoint that the library keeps.
    for network, path in (("2d", "slices_4_seed_1/slices"), ("pseudo", "slices_4_seed_1")):
        best = RunFolder(tmp_path / "runs" / path).load_for_prediction("best")
        (row,) = [row for row in rows if (row["network"], row["rule"]) == (network, "solidity")]
        assert str(best["step"]) == row["step_stop"]
        for look in module.looks_of(tmp_path / "runs" / path):
            assert look["solidity_distance"] == look["morphology_distance"]
    capsys.readouterr()
    show = ["stopping.py", "show", *common, "--plot", str(tmp_path / "plot.png")]
    monkeypatch.setattr(sys, "argv", show)
    module.main()
    assert capsys.readouterr().out.count("\n| 3D + pseudo-labels | 4 | 1 | ") == 2
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_rules_take_the_nearest_shape_or_the_best_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXPERIMENTS)
    module = importlib.import_module("stopping")
    columns = {
        "step": (1, 2, 3),
        "solidity_distance": (0.1, 0.3, 0.1),
        "area_ratio_distance": (0.4, 0.2, 0.3),
        "object_count_distance": (3, 1, 2),
        "target_dice": (0.5, 0.7, 0.9),
        "test_dice": (0.6, 0.8, 0.7),
        "test_iou": (0.4, 0.7, 0.5),
    }
    looks = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rows = {row["rule"]: row for row in module.rows_of(looks)}
    steps = {rule: row["step_stop"] for rule, row in rows.items()}  # of equals the earlier
    assert steps == {"solidity": 1, "area_ratio": 2, "object_count": 2, "slice": 3}
    assert {row["dice_best"] for row in rows.values()} == {0.8}
    assert {row["iou_last"] for row in rows.values()} == {0.5}
    assert all(before[1] < after[0] for before, after in pairwise(module.PARTS.values()))
    assert module.ONE_MORE in range(*module.PARTS["target"])
