# SPDX-License-Identifier: BSD-3-Clause
"""The experiments under benchmarks/, cut down to a few steps: rows, going on, table and plot."""

from __future__ import annotations

import csv
import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

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
        monkeypatch.setattr(sys, "argv", ["sparse_2d3d.py", *run])
        sparse_2d3d.main()
        with results.open(newline="") as file:
            rows = list(csv.DictReader(file))
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
