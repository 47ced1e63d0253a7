# SPDX-License-Identifier: BSD-3-Clause
"""Predictions of runs at a voxel size of their own: on the grid of the file, whole, and gone on with after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from fastseg.data.resampled import ResampledVolume
from fastseg.data.volumes import open_volume
from fastseg.methods import inference
from fastseg.methods.config_file import load_config
from fastseg.predict import second_pass
from fastseg.train.inputs import open_annotated
from tests.project import command, fastseg
from tests.train.processes import finish, start
from tests.train.several_sizes import train_on_several_sizes


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_several_sizes(tmp_path_factory.mktemp("voxel_size"))


@pytest.mark.long
def test_predictions_are_on_the_grid_of_the_file(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained / "run"
    done = fastseg("predict", run)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (run / "predictions").iterdir()) == ["test_0.h5", "test_1.h5"]
    out, coarse = (run / f"predictions/test_{i}.h5" for i in (0, 1))
    segmentation, probability = (open_volume(f"{out}:/{name}") for name in ("segmentation", "probability"))
    assert segmentation.shape == probability.shape == (18, 80, 96)
    assert segmentation.voxel_size == (2.0, 1.0, 1.0)
    assert open_volume(f"{coarse}:/segmentation").shape == (18, 48, 48)
    with h5py.File(out) as file:
        assert file["segmentation"].attrs["origin"].tolist() == [0, 10, 0]
    # The prediction of the grid that the network sees, between its voxels along a straight line.
    volume = open_annotated(
        load_config(trained / "run.yaml").data.test[0], load_config(trained / "run.yaml").data
    )
    assert isinstance(volume.raw, ResampledVolume)
    as_seen = trained / "as_seen.npy"
    np.save(as_seen, volume.raw[:][0])
    state = fastseg(
        "predict", run, "--raw", as_seen, "--output", trained / "seen.h5", "--voxel-size", "2,2,2"
    )
    assert state.returncode == 0, state.stderr
    seen = open_volume(f"{trained}/seen.h5:/probability")[:][0].astype(np.float64)
    assert seen.shape == (18, 40, 48)
    for axis in (1, 2):
        middle = (np.arange(2 * seen.shape[axis]) + 0.5) / 2 - 0.5
        below = np.floor(middle).astype(int)
        low, high = (seen.take((below + i).clip(0, seen.shape[axis] - 1), axis) for i in (0, 1))
        part = (middle - below).reshape([-1 if a == axis else 1 for a in range(3)])
        seen = low * (1 - part) + high * part
    assert np.abs(probability[:][0] - seen).max() < 2e-3  # float16 twice
    assert np.count_nonzero((segmentation[:][0] != 0) != (seen >= 0.5)) <= 1e-3 * seen.size
    evaluated = fastseg("evaluate", run)
    assert evaluated.returncode == 0, evaluated.stderr
    scores = json.loads((run / "evaluation.json").read_text())
    truth = open_volume(f"{trained}/fine.h5:/labels")[:][0, :, 10:90]
    found = segmentation[:][0]
    dice = 2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth))
    assert scores["0: fine.h5:/raw"]["dice"] == pytest.approx(dice)
    assert dice > 0.5
    # In small blocks, with fewer of them held, by two processes: the same.
    monkeypatch.setattr(second_pass, "BLOCK_VOXELS", 1 << 18)
    small = trained / "small.h5"
    raw = ("--raw", f"{trained}/fine.h5:/raw", "--region", "y=10:90", "--output")
    assert fastseg("predict", run, *raw, small).returncode == 0
    assert np.array_equal(open_volume(f"{small}:/probability")[:], probability[:])
    monkeypatch.undo()
    shared = trained / "shared.h5"
    assert [p.returncode for p in finish(start(2, command("predict", run, *raw, shared)))] == [0, 0]
    assert np.array_equal(open_volume(f"{shared}:/probability")[:], probability[:])
    assert np.array_equal(open_volume(f"{shared}:/segmentation")[:], segmentation[:])
    assert not list(trained.glob("*at_voxel_size*"))


def test_morphology_without_probabilities(trained: Path) -> None:
    out = trained / "opened.zarr"
    options = ["--set", "predict.morphology=[[open, 1]]", "--set", "predict.probability=false"]
    raw = ("--raw", f"{trained}/fine.h5:/raw", "--output", out)
    done = fastseg("predict", trained / "run", *raw, *options)
    assert done.returncode == 0, done.stderr
    assert open_volume(f"{out}:/segmentation").shape == (18, 96, 96)
    assert not (out / "probability").exists()
    assert [p.name for p in trained.glob("opened*")] == ["opened.zarr"]


@pytest.mark.parametrize("suffix", ["h5", "zarr"])
def test_an_interrupted_way_back_is_gone_on_with(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    run, raw = trained / "run", ("--raw", f"{trained}/fine.h5:/raw", "--output")
    whole, again = (tmp_path / f"{name}.{suffix}" for name in ("whole", "again"))
    assert fastseg("predict", run, *raw, whole).returncode == 0
    monkeypatch.setattr(second_pass, "BLOCK_VOXELS", 1 << 18)

    def kill_in_the_second_block() -> None:
        reads: list[int] = []
        with monkeypatch.context() as patch:
            read = ResampledVolume.read

            def failing(self: ResampledVolume, *arguments: object) -> np.ndarray:
                if "/probability" in self.stored.name:
                    reads.append(1)
                if len(reads) == 2:
                    raise RuntimeError("killed")
                return read(self, *arguments)

            patch.setattr(ResampledVolume, "read", failing)
            with pytest.raises(RuntimeError, match="killed"):
                fastseg("predict", run, *raw, again)

    kill_in_the_second_block()
    assert not again.exists()
    with monkeypatch.context() as patch:
        patch.setattr(inference, "predict_to_file", None)  # the first pass is whole
        done = fastseg("predict", run, *raw, again)
    assert done.returncode == 0, done.stderr
    for name in ("segmentation", "probability"):
        one, other = (open_volume(f"{path}:/{name}")[:] for path in (whole, again))
        assert np.array_equal(one, other)
    assert sorted(p.name for p in tmp_path.iterdir()) == [again.name, whole.name]
    # Not with what another network, or the same one asked otherwise, would have given.
    again = tmp_path / f"third.{suffix}"
    kill_in_the_second_block()
    flips = ("--set", "predict.flips=plane")
    other = fastseg("predict", run, *raw, again, *flips)
    assert other.returncode == 2
    assert f"{again.name}.partial was begun with other settings (" in other.stderr
    assert fastseg("predict", run, *raw, again, *flips, "--restart").returncode == 0
    assert (open_volume(f"{again}:/probability")[:] != open_volume(f"{whole}:/probability")[:]).any()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"again.{suffix}", again.name, whole.name]
