# SPDX-License-Identifier: BSD-3-Clause
"""fastseg bench and what fastseg check says of speed."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest

from tests.project import fastseg, make_project


def test_bench_writes_the_rates_of_the_pipeline(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    record = tmp_path / "pipeline.json"
    done = fastseg("bench", config, "--pipeline", "--seconds", 0.5, "--json", record)
    assert done.returncode == 0, done.stderr
    assert [line.split("  ")[0] for line in done.stdout.splitlines()[2:5]] == [
        "loader only", "model only", "end to end"
    ]  # fmt: skip
    rates = json.loads(record.read_text())
    patch = rates["config"]["data"]["patch"]
    for stage in ("loader", "model", "end_to_end"):
        assert rates[stage]["patches_per_second"] > 0
        voxels = rates[stage]["voxels_per_second"] / rates[stage]["patches_per_second"]
        assert voxels == pytest.approx(patch[0] * patch[1] * patch[2])
    assert 20 < rates["step"]["launches"] < 1000
    assert rates["graphed_step"] is None
    assert f"a training step: {rates['step']['launches']} launches" in done.stdout
    predicted = rates["prediction"]
    assert predicted["end_to_end_of_model_only"] == predicted["end_to_end"] / predicted["model"]
    assert 0 <= predicted["reading"] + predicted["writing"] < 1
    assert "\nfile to file" in done.stdout
    asked = predicted["batch"]
    assert asked["waits"] == 0
    assert f"a batch of windows: {asked['launches']} launches, {asked['allocations']} alloc" in done.stdout
    assert 10 < asked["launches"] < rates["step"]["launches"]
    assert "say what to time" in fastseg("bench", config).stderr


def test_check_names_chunks_that_are_large_beside_the_patch(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    options = ("--seconds", 0, config, "data.resident=false", "network.pooling=[[1, 2, 2]]")
    small = fastseg("check", *options, "data.patch=[2, 8, 8]").stdout
    assert "trouble: phantoms.h5:/raw: chunks (8, 32, 32) are large beside the patch" in small.replace(
        f"{tmp_path}/", ""
    )
    assert "trouble" not in fastseg("check", *options).stdout


def test_check_says_what_is_mirrored_and_what_is_one_slice_off(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    with h5py.File(tmp_path / "phantoms.h5", "r+") as file:
        labels = file["somata"][:]
        labels[[2, 4, 6, 8, 12, 14]] = 0  # what is left was counted from 1
        file["late"] = labels
    slices = "data.train.0.annotated={slices: [2, 4, 6, 8, 12]}"
    options = (
        "--seconds",
        0,
        config,
        "data.patch=[8, 128, 32]",
        "data.train.0.labels=phantoms.h5:/late",
        slices,
    )
    done = fastseg("check", *options)
    assert done.returncode == 0, done.stderr
    assert "phantoms.h5:/raw, (16, 64, 64) (z, y, x), is smaller than the patch, (8, 128, 32)" in done.stdout
    assert "phantoms.h5:/raw: the annotated slices hold no label, and those at z -1 do" in done.stdout
