# SPDX-License-Identifier: BSD-3-Clause
"""Validation while training: the measures are those of the prediction, and the best weights are the ones used."""

from __future__ import annotations

import json
import resource
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from fastseg.data.annotations import AnnotatedVolume
from fastseg.data.volumes import open_volume
from fastseg.methods.validation import Validation
from fastseg.predict import Tiling
from fastseg.train.checkpoint import RunFolder
from fastseg.train.ranks import Ranks
from tests.project import ENVIRONMENT, command, fastseg, make_project

HELD_OUT = "data.validation=[{raw: phantoms.h5:/raw, labels: phantoms.h5:/somata, region: {z: [12, 24]}}]"


def measures(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "validation.jsonl").open()]


@pytest.mark.long
@pytest.mark.parametrize("ema", ["train.ema=0.8", "train.ema=null"])
def test_measures_are_those_of_predict_and_evaluate(tmp_path: Path, ema: str) -> None:
    config, run = make_project(tmp_path), tmp_path / "run"
    settings = [HELD_OUT, ema, "train.validate_every=7", "train.precision=fp32", "train.learning_rate=0.02"]
    done = fastseg("train", config, *settings)
    assert done.returncode == 0, done.stderr
    assert "validation dice" in done.stderr
    assert [row["step"] for row in measures(run)] == [7, 14, 21, 28, 30]
    best = max(measures(run), key=lambda row: row["dice"])
    assert RunFolder(run).load_for_prediction("best")["step"] == best["step"]

    # data.test is the same crop.
    for which, expected in (("newest", measures(run)[-1]), ("best", best)):
        assert fastseg("predict", run, "--set", f"predict.checkpoint={which}").returncode == 0
        assert fastseg("evaluate", run).returncode == 0
        scores = json.loads((run / "evaluation.json").read_text())["0: phantoms.h5:/raw"]
        assert scores["dice"] == pytest.approx(expected["dice"], abs=1e-6)
        chance = open_volume(f"{run}/predictions/test_0.h5:/probability")[:][0].astype("f8")
        with h5py.File(tmp_path / "phantoms.h5") as file:
            truth = file["somata"][12:24] > 0
        loss = -np.log(np.where(truth, chance, 1 - chance)).mean()
        assert loss == pytest.approx(expected["loss"], rel=2e-3)  # the file holds float16


def test_only_labelled_voxels_count(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    with h5py.File(tmp_path / "phantoms.h5", "r+") as file:
        labels = file["somata"][:]
        labels[16:24] = 999
        file["partly"] = labels
    rows = []
    for name, dataset, region in (("partly", "partly", "[12, 24]"), ("crop", "somata", "[12, 16]")):
        volume = f"raw: phantoms.h5:/raw, labels: phantoms.h5:/{dataset}, region: {{z: {region}}}"
        overrides = [
            f"data.validation=[{{{volume}}}]",
            "data.normalize=range",
            "data.ignore_label=999",
            "predict.overlap=0",
            "train.steps=2",
            "data.patch=[4, 32, 32]",
        ]
        done = fastseg("train", config, f"output={tmp_path}/{name}", *overrides, "train.precision=fp32")
        assert done.returncode == 0, done.stderr
        rows.append(measures(tmp_path / name)[-1])
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)


def test_processes_share_the_blocks_without_rest_or_overlap(tmp_path: Path) -> None:
    """What each of three processes adds up is a part of what one alone does, and together all of it."""
    rng = np.random.default_rng(0)
    for name, array in (
        ("raw", rng.random((40, 140, 150), "f4")),
        ("labels", rng.integers(0, 2, (40, 140, 150))),
    ):
        np.save(tmp_path / f"{name}.npy", array)
    volume = AnnotatedVolume(*(open_volume(tmp_path / f"{name}.npy") for name in ("raw", "labels")))

    class Alone(Ranks):
        def sum(self, values: torch.Tensor) -> torch.Tensor:
            added.append(values.double().flatten())
            return values

    def added_by(rank: int, count: int) -> torch.Tensor:
        added.clear()
        ranks = Alone(rank, count)
        Validation([volume], [lambda raw: raw], [Tiling((8, 16, 16), overlap=0)], 0.5, ranks).measure()
        return torch.cat(added)

    added: list[torch.Tensor] = []
    whole, parts = added_by(0, 1), [added_by(rank, 3) for rank in range(3)]
    torch.testing.assert_close(sum(parts), whole)
    assert all(0 < part[-1] < whole[-1] for part in parts)


def test_exclusive_classes_have_a_dice_each_and_the_cross_entropy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw, ids = rng.dirichlet((1, 1, 1), (6, 20, 20)).astype("f4"), rng.integers(0, 3, (6, 20, 20))
    np.save(tmp_path / "raw.npy", raw[..., 1:].transpose(3, 0, 1, 2))
    np.save(tmp_path / "labels.npy", ids)
    opened = [open_volume(tmp_path / f"{name}.npy") for name in ("raw", "labels")]
    options = {"exclusive": True, "names": ["a", "b"]}
    arguments = ([lambda raw: raw], [Tiling((6, 20, 20), overlap=0)], 0.5, Ranks(0, 1))
    found = Validation([AnnotatedVolume(*opened, classes=(1, 2))], *arguments, **options).measure()
    chosen = np.where(raw[..., 1:].sum(-1) >= 0.5, 1 + raw[..., 1:].argmax(-1), 0)
    dice = [2 * ((chosen == c) & (ids == c)).sum() / ((chosen == c).sum() + (ids == c).sum()) for c in (1, 2)]
    loss = -np.log(np.take_along_axis(raw, ids[..., None], -1)).mean()
    expected = {"dice": np.mean(dice), "dice_a": dice[0], "dice_b": dice[1], "loss": loss}
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.long
def test_training_is_the_same_with_and_without_validation(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    for name, overrides in (("with", [HELD_OUT, "train.validate_every=4"]), ("without", [])):
        assert fastseg("train", config, f"output={tmp_path}/{name}", *overrides).returncode == 0
    assert (tmp_path / "with/log.jsonl").read_text() == (tmp_path / "without/log.jsonl").read_text()
    one, two = (RunFolder(tmp_path / name).load()["network"] for name in ("with", "without"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_validation_volumes_must_fit(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    for command_ in ("train", "check"):
        done = fastseg(command_, config, "data.validation=[{raw: phantoms.h5:/raw}]")
        assert (done.returncode, "validation volume phantoms.h5:/raw needs labels" in done.stderr) == (
            2,
            True,
        )
    np.save(tmp_path / "two.npy", np.zeros((2, 24, 64, 64), "u1"))
    done = fastseg("train", config, "data.validation=[{raw: two.npy, labels: phantoms.h5:/somata}]")
    assert "validation volumes must agree in channels with the first" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_too_little_memory_says_what_to_lower(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))

    done = subprocess.run(
        command(
            "train", make_project(tmp_path), "network.width=16", "train.batch=1024", "train.precision=fp32"
        ),
        capture_output=True,
        text=True,
        preexec_fn=limit,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fastseg: out of memory in main memory (asked for ")
    assert (
        "with train.batch 1024, data.patch [8, 32, 32], network.width 16, train.precision fp32: lower" in last
    )
