# SPDX-License-Identifier: BSD-3-Clause
"""A scene to pretrain on, and the configuration of it."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np

from fastseg.methods.config_file import load_config
from fastseg.methods.region_contrast.training import PretrainingTask
from fastseg.train.config import Config
from fastseg.train.folders import each_image
from fastseg.train.inputs import open_training
from fastseg.train.ranks import Ranks
from tests.methods.tissue import draw_image

CONFIG = """\
method: region_contrast
output: run
data: {train: [{raw: "images/*.png"}], patch: [32, 32]}
network: {width: 4, pooling: [2, 2]}
region_contrast: {regions: 4, embedding: 8, shift: 6, sample_steps: 2, picture_every: 4, mask_size: 8}
train: {steps: 6, batch: 4, validate_every: 3, checkpoint_every: 3, device: cpu}
"""
PRETEXTS = ["regions", "masked", "images"]


def draw_scene(folder: Path) -> Path:
    """Three grey images, their truth, and superpixels."""
    for name in ("images", "truth", "superpixels"):
        (folder / name).mkdir()
    for i in range(3):
        image, truth = draw_image(i, (64, 80))
        imageio.imwrite(folder / "images" / f"{i}.png", image.mean(-1).astype(np.uint8))
        imageio.imwrite(folder / "truth" / f"{i}.png", truth.astype(np.uint8))
        blocks = np.add.outer(np.arange(64) // 8 * 10, np.arange(80) // 8)  # 0 is no region
        imageio.imwrite(folder / "superpixels" / f"{i}.png", blocks.astype(np.uint8))
    (folder / "run.yaml").write_text(CONFIG)
    return folder


def config_of(scene: Path, *overrides: str) -> Config:
    return load_config(scene / "run.yaml", [f"output={scene / 'run'}", *overrides])


def task_of(config: Config, ranks: Ranks | None = None) -> PretrainingTask:
    config = each_image(config)
    volumes = open_training(config, labelled=config.region_contrast.given)
    return PretrainingTask(config, volumes, ranks or Ranks())
