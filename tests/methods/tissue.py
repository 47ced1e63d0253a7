# SPDX-License-Identifier: BSD-3-Clause
"""Drawn images of stained nuclei with their truth, and a configuration for them, for the tests of patch contrast."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np

from fastseg.methods.config_file import load_config
from fastseg.train.config import Config

CONFIG = """\
method: patch_contrast
output: run
data: {train: [{raw: "images/*.png"}], patch: [64, 64]}
network: {dilations: [1, 2, 3]}
patch_contrast: {channels: 3, patch_size: 12, stride: 4, appearance: dark, sample_steps: 2, picture_every: 20,
                 stop_window: 10, stop_gain: null}
train: {steps: 40, batch: 4, learning_rate: 3.0e-3, validate_every: 20, checkpoint_every: 20, device: cpu}
"""


def draw_image(seed: int, shape: tuple[int, int] = (96, 110)) -> tuple[np.ndarray, np.ndarray]:
    """Dark violet disks on light pink, uneven and noisy, and where they are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    truth = np.zeros(shape, bool)
    for _ in range(12):
        cy, cx, r = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(6, 10)
        truth |= (y - cy) ** 2 + (x - cx) ** 2 < r**2
    light = 0.9 + 0.1 * np.sin(x / 15 + seed)
    colour = np.where(truth[..., None], (90, 60, 140), (225, 180, 205)) * light[..., None]
    return np.clip(colour + rng.normal(0, 12, colour.shape), 0, 255).astype(np.uint8), truth


def scene(folder: Path, **changes: object) -> Path:
    """Four images of two sizes with their truth beside them, and a configuration."""
    for name in ("images", "truth"):
        (folder / name).mkdir()
    for i in range(4):
        image, truth = draw_image(i, (96, 110) if i % 2 else (80, 120))
        imageio.imwrite(folder / "images" / f"tissue_{i}.png", image)
        imageio.imwrite(folder / "truth" / f"tissue_{i}.png", truth.astype(np.uint8))
    (folder / "run.yaml").write_text(CONFIG)
    return folder / "run.yaml"


def config_of(path: Path, *overrides: str) -> Config:
    return load_config(path, [f"output={path.parent / 'run'}", *overrides])
