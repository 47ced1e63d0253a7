# SPDX-License-Identifier: BSD-3-Clause
"""The configurations of the repository on the real data they are for: HDF5, a TIFF stack, a folder of images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.project import fastseg

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize(
    ("config", "folder", "first_file"),
    [
        ("lucchi_sparse", "em_lucchi", "train.h5"),
        ("nuclei_tiff", "fl3d_qcanet", "8_cell_raw.tif"),
        ("membrane_images", "em_kidney_gbm", "photo1_image.png"),
    ],
)
def test_a_few_steps_on_real_data(
    sample: Callable[[str], Path], tmp_path: Path, config: str, folder: str, first_file: str
) -> None:
    root = sample(f"{folder}/{first_file}").parent
    overrides = [f"data.root={root}", f"output={tmp_path}/run", "network.width=2", "train.steps=5"]
    for command in (("check", "--seconds", 1), ("train",)):
        done = fastseg(*command, CONFIGS / f"{config}.yaml", *overrides)
        assert done.returncode == 0, done.stderr
    done = fastseg("predict", tmp_path / "run", "--set", "predict.overlap=0")
    assert done.returncode == 0, done.stderr
    assert fastseg("evaluate", tmp_path / "run").returncode == 0
    assert len(json.loads((tmp_path / "run/evaluation.json").read_text())) == 1
