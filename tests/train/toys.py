# SPDX-License-Identifier: BSD-3-Clause
"""Tasks of a few numbers, for the tests of the trainer."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastseg.train.config import TrainConfig
from fastseg.train.task import Task, Update, adamw_update

SETTINGS = {"steps": 12, "precision": "fp32", "checkpoint_every": 4, "device": "cpu", "learning_rate": 0.01}


class Toy(Task):
    """Regression on random numbers per step, with dropout and noise from every global generator."""

    def __init__(self, **changes: Any) -> None:
        torch.manual_seed(1)
        self.network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.measures: Callable[[], dict[str, float]] = dict
        self.asked_at: int | None = None
        self.seen: list[int] = []
        self.places = range(6)
        self.__dict__.update(changes)

    def batches(self, first: int, last: int) -> Iterator[Tensor]:
        for step in range(first, last):
            batch = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            yield batch[self.places.start : self.places.stop]

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append(step)
        if step == self.asked_at:
            signal.raise_signal(signal.SIGUSR1)
        noise = random.random() + np.random.rand()  # noqa: NPY002
        error = self.network(batch) - batch.sum(1, keepdim=True) - noise
        return error.square().mean(), {"noise": torch.tensor(noise)}

    def validate(self) -> dict[str, float]:
        assert not self.network.training
        return self.measures()


class Adversaries(Toy):
    """Two networks; the loss of each runs through both."""

    def __init__(self, places: range = range(6)) -> None:
        super().__init__(places=places)
        torch.manual_seed(3)
        self.network = nn.ModuleDict({"maker": nn.Linear(4, 4), "judge": nn.Linear(4, 1)})

    def updates(self, settings: TrainConfig) -> list[Update]:
        def judge(batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
            return self.judged(batch).square().mean(), {"seen": torch.tensor(1.0)}

        def maker(batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
            if step % 2:
                return torch.zeros(()), {}
            return (self.judged(batch) - 1).square().mean(), {}

        losses = {"judge": judge, "maker": maker}
        return [adamw_update(name, self.network[name], loss, settings) for name, loss in losses.items()]

    def judged(self, batch: Tensor) -> Tensor:
        return self.network["judge"](self.network["maker"](batch))
