# SPDX-License-Identifier: BSD-3-Clause
"""Drawn blobs in two styles, and the configuration that brings one to the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastseg.methods.config_file import load_config
from fastseg.methods.domain_adaptation.style.inputs import style_config
from fastseg.methods.domain_adaptation.style.training import StyleTask
from fastseg.train.config import Config
from fastseg.train.inputs import open_target, open_training
from fastseg.train.ranks import Ranks

# Labels that do not exist: nothing may open them.
CONFIG = """\
method: domain_adaptation
output: run
data: {train: [{raw: source.npy, labels: none.npy}], target: [{raw: target.npy, labels: none.npy}], patch: [64, 64],
       normalize: range}
domain_adaptation:
  strategy: style
  style: {steps: 6, batch: 2, patch: [32, 32], width: 4, blocks: 2, patches: 16, projection: 8, sample_steps: 2,
          picture_every: 4}
train: {validate_every: 3, checkpoint_every: 3, device: cpu, precision: fp32}
"""


def draw_blobs(seed: int) -> np.ndarray:
    """Dark disks on light ground, noisy, (3, 64, 64) in [0, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:64, :64]
    image = np.full((3, 64, 64), 0.75)
    for plane in image:
        for _ in range(14):
            cy, cx, r = rng.uniform(0, 64), rng.uniform(0, 64), rng.uniform(4, 8)
            plane[(y - cy) ** 2 + (x - cx) ** 2 < r**2] = rng.uniform(0.2, 0.35)
    return np.clip(image + rng.normal(0, 0.03, image.shape), 0, 1)


def draw_styles_scene(folder: Path) -> Path:
    """Source and target, the latter through a gamma of 2.5, and a configuration."""
    np.save(folder / "source.npy", (255 * draw_blobs(0)).astype(np.uint8))
    np.save(folder / "target.npy", (255 * draw_blobs(1) ** 2.5).astype(np.uint8))
    (folder / "run.yaml").write_text(CONFIG)
    return folder


def config_of(scene: Path, *overrides: str) -> Config:
    """style.key=value stands for domain_adaptation.style.key=value."""
    whole = [f"domain_adaptation.{text}" if text.startswith("style.") else text for text in overrides]
    return load_config(scene / "run.yaml", [f"output={scene / 'run'}", *whole])


def task_of(config: Config, ranks: Ranks | None = None) -> StyleTask:
    config = style_config(config)
    source = open_training(config, labelled=False)
    return StyleTask(config, source, open_target(config, source[0].raw), ranks or Ranks())


def in_float64(task: StyleTask) -> StyleTask:
    task.network.double()
    images = task._images
    task._images = lambda batch: [image.double() for image in images(batch)]  # type: ignore[method-assign]
    return task
