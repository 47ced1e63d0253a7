# SPDX-License-Identifier: BSD-3-Clause
"""Several updates in a step: what their losses make together."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from fastseg.train.config import TrainConfig
from fastseg.train.task import adamw_update
from tests.train.test_trainer import train
from tests.train.toys import SETTINGS, Adversaries


def test_what_updates_share_is_made_once_and_leads_back_to_each(tmp_path: Path) -> None:
    """A maker's work reaches its own loss with the way back, and its judge's detached; no step freezes the next's."""
    task = Adversaries()
    made: list[Tensor] = []

    def shared(batch: Tensor, step: int) -> Tensor:
        made.append(task.network["maker"](batch))
        assert made[-1].requires_grad
        return made[-1]

    def judge(work: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        assert work is made[-1]
        return task.network["judge"](work.detach()).square().mean(), {}

    def maker(work: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        assert work is made[-1]
        assert not any(p.requires_grad for p in task.network["judge"].parameters())
        return (task.network["judge"](work) - 1).square().mean(), {}

    losses = {"maker": maker, "judge": judge}
    task.shared = shared  # type: ignore[method-assign]
    task.updates = lambda settings: [  # type: ignore[method-assign]
        adamw_update(name, task.network[name], loss, settings) for name, loss in losses.items()
    ]
    apart = copy.deepcopy(task.network)
    train(task, tmp_path, steps=3, clip_norm=None)
    assert len(made) == 3
    settings = TrainConfig(**(SETTINGS | {"steps": 3}))
    steps = {name: adamw_update(name, apart[name], loss, settings) for name, loss in losses.items()}
    for batch in task.batches(0, 3):
        work = apart["maker"](batch)
        for name, update in steps.items():
            update.optimizer.zero_grad()
            loss = (apart["judge"](work) - 1) if name == "maker" else apart["judge"](work.detach())
            loss.square().mean().backward()
            update.optimizer.step()
            update.schedule.step()
    for mine, theirs in zip(task.network.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
