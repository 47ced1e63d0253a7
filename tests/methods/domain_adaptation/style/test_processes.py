# SPDX-License-Identifier: BSD-3-Clause
"""Style transfer on several processes: as if there were one."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from torch import Tensor
from torch.testing import assert_close

from fastseg.methods.domain_adaptation.style.training import train
from fastseg.train.config import Config
from fastseg.train.ranks import Ranks
from fastseg.train.stepper import Stepper
from tests.gloo import in_processes
from tests.methods.domain_adaptation.style.styles import config_of, draw_styles_scene, in_float64, task_of


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return draw_styles_scene(tmp_path)


def gradients(rank: int, config: Config, count: int) -> tuple[dict[str, float], list[Tensor]]:
    """What is logged of two steps of one of ``count`` processes, and the gradients of the second, in float64: those of
    biases before an instance norm are rounding alone."""
    task = in_float64(task_of(config, Ranks(rank, count)))
    updates = task.updates(config.train)
    stepper = Stepper(updates, task.config.train, task.ranks, task)
    found: list[Tensor] = []
    for update in updates:  # before each optimizer's step
        update.optimizer.register_step_pre_hook(
            lambda optimizer, *_: found.extend(
                p.grad.clone() for group in optimizer.param_groups for p in group["params"]
            )
        )
    row = {}
    for step, batch in enumerate(task.batches(0, 2)):
        found.clear()
        row = {name: float(value) for name, value in stepper.step(batch, step).items()}
    return row, found


@pytest.mark.long
@pytest.mark.parametrize("options", [(), ("style.identity=false",)])
def test_two_processes_are_one_with_the_joined_batch(
    scene: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    config = config_of(scene, *options)
    row, grads = gradients(0, config, 1)
    parts = in_processes(gradients, 2, tmp_path, config, 2)
    assert parts[0][0]["generator_nce"] != parts[1][0]["generator_nce"]
    for name, value in row.items():
        assert np.mean([part[0][name] for part in parts]) == pytest.approx(value, rel=1e-5), name
    assert len(grads) == sum(1 for _ in task_of(config).network.parameters())
    scale = max(float(truth.abs().max()) for truth in grads)
    for mine, other, truth in zip(parts[0][1], parts[1][1], grads, strict=True):
        assert bool((mine == other).all())
        assert_close(mine, truth, rtol=1e-4, atol=1e-6 * scale)


def run_of(rank: int, config: Config) -> None:
    train(config, ranks=Ranks(rank, 2), quiet=True)


@pytest.mark.long
def test_a_run_of_two_processes_has_the_losses_and_facts_of_one(scene: Path, tmp_path: Path) -> None:
    one = train(config_of(scene), ranks=Ranks(), quiet=True)
    in_processes(run_of, 2, tmp_path, config_of(scene, f"output={scene / 'two'}"))
    folders = (Path(one.path), scene / "two" / "style")
    losses = [
        [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in folders
    ]
    assert len(losses[1]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    facts = [json.loads((folder / "style.json").read_text()) for folder in folders]
    assert facts[1]["distance_before"] == pytest.approx(facts[0]["distance_before"], rel=1e-6)
    assert facts[1]["content"] == pytest.approx(facts[0]["content"], abs=0.05)
    assert imageio.imread(folders[1] / "figures" / "style.png").std() > 10
