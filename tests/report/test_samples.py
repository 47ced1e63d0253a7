# SPDX-License-Identifier: BSD-3-Clause
"""Which boxes are pictured, what is predicted in them, and that a huge volume costs no more than a small one."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import yaml

from fastseg.data.annotations import AnnotatedVolume, Annotation
from fastseg.data.volumes import open_volume
from fastseg.methods.config_file import load_config
from fastseg.report.samples import draw_samples, places
from fastseg.train.checkpoint import RunFolder
from tests.data.scenes import sizes_read, stored
from tests.project import fastseg, make_project


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_project(tmp_path_factory.mktemp("samples"))
    done = fastseg("train", config, "train.steps=30", "train.learning_rate=0.02", "train.precision=fp32")
    assert done.returncode == 0, done.stderr
    return config.parent / "run"


def test_a_sample_is_what_predict_writes_there(run: Path) -> None:
    raw, out = run.parent / "phantoms.h5:/raw", run.parent / "whole.h5"
    options = ("--region", "z=0:16", "--set", "predict.window=[16,64,64]")
    assert fastseg("predict", run, "--raw", raw, "--output", out, *options).returncode == 0
    written = open_volume(f"{out}:/segmentation")[:][0]
    config = yaml.safe_load((run / "config.yaml").read_text())
    # A window that covers the volume: then the box is predicted from all there is.
    config["predict"]["window"] = [16, 64, 64]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    notes: list[str] = []
    samples = draw_samples(RunFolder(run), notes)["training"]
    assert not notes
    assert len(samples) == 2
    truth = open_volume(run.parent / "phantoms.h5:/somata")[:][0]
    for sample in samples:
        z = int(sample.title.split(", z ")[1].split(",")[0])
        assert np.array_equal(sample.predicted[0], written[z] != 0)
        assert np.array_equal(sample.truth[0], truth[z] != 0)
        assert sample.known is not None
        assert sample.known.all()
        assert np.array_equal(sample.image[0], open_volume(raw)[z : z + 1][0, 0])
        both = np.count_nonzero(sample.predicted & sample.truth)
        assert sample.dice == [pytest.approx(2 * both / (sample.predicted.sum() + sample.truth.sum()))]


def test_places_show_both_sides_of_what_is_labelled(tmp_path: Path, run: Path) -> None:
    config = load_config(run / "config.yaml")
    labels = np.zeros((12, 700, 40), np.uint8)
    labels[2, :3] = labels[8, -200:-100] = labels[5] = 1  # slice 5 is not annotated
    raw = np.random.default_rng(0).integers(0, 255, labels.shape).astype(np.uint8)
    volumes = [stored(tmp_path, "raw", raw), stored(tmp_path, "labels", labels)]
    found = places(AnnotatedVolume(*volumes, annotation=Annotation(0, (2, 5, 8))), config)
    assert [place.low[0] for place in found] == [8, 2, 5]
    assert found[0].high[1] - found[0].low[1] == 320
    assert found[0].low[1] > 200
    across = AnnotatedVolume(*volumes, annotation=Annotation(2, (7,)))
    assert [(p.axis, p.low[2], p.high[2]) for p in places(across, config)] == [(2, 7, 8)]
    raw[:] = 100
    raw[6] = np.random.default_rng(0).integers(0, 255, raw.shape[1:])
    (place, *_) = places(AnnotatedVolume(stored(tmp_path, "flat", raw)), config)
    assert place.low[0] in (1, 4, 7, 10)  # evenly, of all slices


def test_a_huge_volume_is_read_in_small_boxes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (64, 8192, 8192)  # 4 GiB, of which nothing is on the disk
    for name in ("huge", "labels"):
        array = np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.uint8, shape)
        array[8, 2000:2100, 2000:2100] = 1
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["train"] = [{"raw": str(tmp_path / "huge.npy"), "labels": str(tmp_path / "labels.npy")}]
    config["data"]["normalize"] = "range"
    config["predict"] |= {"window": None, "overlap": 0}
    folder = RunFolder(tmp_path / "run")
    Path(folder.path).mkdir()
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "run/checkpoints").symlink_to(run / "checkpoints")
    voxels = sizes_read(monkeypatch)
    notes: list[str] = []
    tracemalloc.start()
    samples = draw_samples(folder, notes)["training"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not notes
    assert len(samples) == 2
    assert samples[0].predicted.shape == (1, 320, 320)
    assert max(voxels) <= 8 * 320 * 320
    assert peak < 64 << 20


def test_what_cannot_be_read_is_left_out_with_a_note(run: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["target"] = [{"raw": "nothing.h5:/raw"}, {"raw": "phantoms.h5:/raw"}]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    notes: list[str] = []
    found = draw_samples(RunFolder(tmp_path), notes)
    assert [len(found[part]) for part in ("training", "target")] == [2, 1]
    (note,) = notes
    assert note.startswith("no picture of data.target.0 (nothing.h5:/raw): ")
    assert "nothing.h5 does not exist" in note
