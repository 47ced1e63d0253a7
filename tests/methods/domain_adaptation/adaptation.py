# SPDX-License-Identifier: BSD-3-Clause
"""Two domains to adapt between, and a configuration of it: bright disks on dark ground, fainter on brighter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastseg.methods.config_file import load_config
from fastseg.methods.domain_adaptation.config import Phase
from fastseg.methods.domain_adaptation.data import open_domains
from fastseg.methods.domain_adaptation.restoration import RestorationTask
from fastseg.methods.domain_adaptation.training import phase_config
from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import Config
from fastseg.train.ranks import Ranks

CONFIG = """\
method: domain_adaptation
output: run
data:
  train: [{raw: source.npy, labels: source_labels.npy}]
  target: [{raw: target.npy, region: {z: [0, 4]}}]
  test: [{raw: target.npy, labels: target_labels.npy, region: {z: [4, 6]}}]
  patch: [32, 32]
network: {width: 2}
domain_adaptation:
  pretrain: {steps: 6, batch: 4}
  step_1: {steps: 6, batch: 4}
  step_2: {steps: 6, batch: 4}
train: {steps: 6, batch: 4, checkpoint_every: 3, device: cpu}
"""
PHASES = {"none": [], "pretrain": ["pretrain"], "ynet": ["step_1", "step_2"]}


def draw_volume(seed: int, ground: float, disk: float, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """(6, 48, 64) uint8 with a black edge, and where its disks are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :64]
    truth = np.zeros((6, 48, 64), bool)
    for plane in truth:
        for _ in range(5):
            cy, cx, r = rng.uniform(0, 48), rng.uniform(0, 64), rng.uniform(4, 8)
            plane |= (y - cy) ** 2 + (x - cx) ** 2 < r**2
    raw = np.where(truth, disk, ground) + rng.normal(0, noise, truth.shape)
    raw = raw.clip(3, 255).astype(np.uint8)
    raw[:, :3] = 0
    return raw, truth.astype(np.uint8)


def draw_domains(folder: Path) -> Path:
    for name, values in (("source", (0, 70, 200, 10)), ("target", (1, 110, 150, 14))):
        raw, labels = draw_volume(*values)
        np.save(folder / f"{name}.npy", raw)
        np.save(folder / f"{name}_labels.npy", labels)
    (folder / "run.yaml").write_text(CONFIG)
    return folder / "run.yaml"


def config_of(path: Path, strategy: str, *overrides: str) -> Config:
    chosen = f"domain_adaptation.strategy={strategy}"
    return load_config(path, [f"output={path.parent / 'run'}", chosen, *overrides])


def task_of(config: Config, phase: Phase, ranks: Ranks | None = None) -> RestorationTask:
    return RestorationTask(phase_config(config, phase), open_domains(config, Ranks()), ranks or Ranks())


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    return RunFolder(path).load()["network"]


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
