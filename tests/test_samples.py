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


def test_both_domains_on_real_data(sample: Callable[[str], Path], tmp_path: Path) -> None:
    root = sample("em_lucchi/train.h5").parents[1]
    sample("em_vnc/stack2_unlabelled.h5")
    small = "{z: [0, 1], y: [0, 256], x: [0, 256]}"
    steps = [f"domain_adaptation.{step}.steps=3" for step in ("step_1", "step_2")]
    overrides = [f"data.root={root}", f"output={tmp_path}/run", "network.width=2", "train.steps=3", *steps]
    overrides += [f"data.{part}.0.region={small}" for part in ("target", "test")]
    for command in (("check", "--seconds", 1), ("train",)):
        done = fastseg(*command, CONFIGS / "mitochondria_domains.yaml", *overrides)
        assert done.returncode == 0, done.stderr
    for command in ("predict", "evaluate"):
        assert fastseg(command, tmp_path / "run").returncode == 0
    full = fastseg("check", "--seconds", 0, CONFIGS / "mitochondria_domains_gpu.yaml", f"data.root={root}")
    assert full.returncode == 0, full.stderr
    assert "network: 7,935,045 parameters" in full.stdout
