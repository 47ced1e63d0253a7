# SPDX-License-Identifier: BSD-3-Clause
"""Method region_contrast on several processes: as if there were one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import imageio.v3 as imageio
import pytest
import torch

from fastseg.methods.region_contrast.training import train
from fastseg.train.config import Config
from fastseg.train.ranks import Ranks
from fastseg.train.stepper import Stepper
from tests.gloo import in_processes
from tests.methods.region_contrast.pretraining import PRETEXTS, config_of, draw_scene, task_of
from tests.train.processes import finish, start


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return draw_scene(tmp_path)


def step_gradients(rank: int, config: Config, count: int) -> tuple[float, list[torch.Tensor], torch.Tensor]:
    """Loss, gradients and what is remembered after two steps, of one of ``count`` processes."""
    task = task_of(config, Ranks(rank, count))
    stepper = Stepper(
        task.updates(config.train), config.train.model_copy(update={"clip_norm": None}), task.ranks
    )
    task.network.train()
    losses, grads = [], []
    for step in range(2):
        loss, _ = stepper.losses[0](task.loader.load(step), step)
        loss.backward()
        losses.append(float(loss.detach()))
        grads = [p.grad.clone() for p in task.network.parameters() if p.grad is not None]
    memory = getattr(task.network, "memory", None)
    return sum(losses), grads, torch.zeros(0) if memory is None else memory.rows


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        ("region_contrast.memory=32",),
        ("region_contrast.negatives=image",),
        ("region_contrast.semantic_weight=0",),
        ("region_contrast.pretext=masked",),
        ("region_contrast.pretext=images", "region_contrast.memory=8"),
    ],
)
def test_two_processes_are_one_with_the_joined_batch(
    scene: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    config = config_of(scene, *options, "train.precision=fp32")
    loss, grads, memory = step_gradients(0, config, 1)
    parts = in_processes(step_gradients, 2, tmp_path, config, 2)
    assert sum(part[0] for part in parts) / 2 == pytest.approx(loss, rel=1e-5)
    assert parts[0][0] != parts[1][0]
    for _, found, remembered in parts:  # what DistributedDataParallel has left is the mean, on both
        assert len(found) == len(grads)
        for mine, truth in zip(found, grads, strict=True):
            torch.testing.assert_close(mine, truth, rtol=2e-4, atol=1e-6)
        assert torch.allclose(remembered.sort(0).values, memory.sort(0).values, atol=1e-5)  # in another order


@pytest.mark.long
@pytest.mark.parametrize("pretext", PRETEXTS)
def test_a_run_of_two_processes_has_the_losses_and_the_picture_of_one(scene: Path, pretext: str) -> None:
    options = [
        f"region_contrast.pretext={pretext}",
        "region_contrast.picture_every=2",
        "train.precision=fp32",
    ]
    whole = train(config_of(scene, *options, f"output={scene / 'one'}"), quiet=True)
    command = [sys.executable, "-m", "fastseg.cli", "train", str(scene / "run.yaml"), *options]
    for done in finish(start(2, [*command, f"output={scene / 'two'}"])):
        assert done.returncode == 0, done.stderr
    one, two = (
        [json.loads(line)["loss"] for line in Path(folder, "log.jsonl").read_text().splitlines()]
        for folder in (whole.path, scene / "two")
    )
    assert two == pytest.approx(one, rel=1e-3)
    assert len(two) == 6
    stated = json.loads((scene / "two" / "pretraining.json").read_text())
    assert stated["loss"] == pytest.approx(
        json.loads(Path(whole.file("pretraining.json")).read_text())["loss"], rel=1e-2
    )
    assert imageio.imread(scene / "two" / "figures" / "regions.png").std() > 10
