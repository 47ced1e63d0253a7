# SPDX-License-Identifier: BSD-3-Clause
"""One training step: precision, backward, gradients of all processes, clipping, optimizer, schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastseg.train.config import TrainConfig
from fastseg.train.device import autocast_dtype
from fastseg.train.ranks import Ranks
from fastseg.train.task import Loss, Update

# torch begins at 2**16, which float16 gradients of a fresh network overflow in the first steps more often than not.
_FIRST_SCALE = 2.0**12


class Stepper:
    """The updates of a task, step by step, with the state that a checkpoint needs."""

    def __init__(
        self,
        updates: list[Update],
        settings: TrainConfig,
        ranks: Ranks,
        shared: Callable[[Any, int], Any] | None = None,
    ) -> None:
        """shared: see ``Task.shared``."""
        self.shared = shared
        self.updates, self.clip_norm, self.device = updates, settings.clip_norm, ranks.device
        self.precision = autocast_dtype(settings.precision, ranks.device)
        scaled = self.precision == torch.float16
        self.scaler = torch.amp.GradScaler(ranks.device.type, init_scale=_FIRST_SCALE, enabled=scaled)
        self.losses: list[Loss] = [
            _averaging_gradients(update) if ranks.count > 1 else update.loss for update in updates
        ]

    def step(self, batch: Any, step: int) -> dict[str, Tensor | float]:
        """Take a step; returns what to log, on the device still."""
        row: dict[str, Tensor | float] = {}
        stepped = False
        if self.shared is not None:
            self._train_only(*self.updates)
            with self._autocast():
                batch = self.shared(batch, step)
        for update, loss_of in zip(self.updates, self.losses, strict=True):
            prefix = f"{update.name}_" if len(self.updates) > 1 else ""
            self._train_only(update)
            with self._autocast():
                loss, scalars = loss_of(batch, step)
            row |= {
                f"{prefix}learning_rate": update.schedule.get_last_lr()[0],
                f"{prefix}loss": loss.detach(),
            }
            row |= {prefix + name: value for name, value in scalars.items()}
            if loss.requires_grad:
                self.scaler.scale(loss).backward()
                if self.clip_norm is not None:
                    self.scaler.unscale_(update.optimizer)
                    norm = nn.utils.clip_grad_norm_(update.parameters, self.clip_norm)
                    row[f"{prefix}gradient_norm"] = norm.detach()
                self.scaler.step(update.optimizer)
                update.optimizer.zero_grad(set_to_none=True)
                stepped = True
            update.schedule.step()
        if stepped:
            self.scaler.update()
        if len(self.updates) > 1:
            row["loss"] = sum(row[f"{update.name}_loss"] for update in self.updates)
        return row

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)

    def _train_only(self, *trained: Update) -> None:
        # One network's loss runs through another, as a generator's through its adversary, whose gradient is not
        # asked for and must reach neither its optimizer nor the other processes.
        if len(self.updates) > 1:
            mine = {id(p) for update in trained for p in update.parameters}
            for parameter in {p for other in self.updates for p in other.parameters}:
                parameter.requires_grad_(id(parameter) in mine)

    def state_dict(self) -> dict[str, Any]:
        states = {
            update.name: {
                "optimizer": update.optimizer.state_dict(),
                "schedule": update.schedule.state_dict(),
            }
            for update in self.updates
        }
        return {"updates": states, "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for update in self.updates:
            update.optimizer.load_state_dict(state["updates"][update.name]["optimizer"])
            update.schedule.load_state_dict(state["updates"][update.name]["schedule"])
        self.scaler.load_state_dict(state["scaler"])


def _averaging_gradients(update: Update) -> Loss:
    """The update's loss, whose backward pass leaves the mean of all processes' gradients in its parameters."""
    return DistributedDataParallel(_LossModule(update), gradient_as_bucket_view=True)


class _LossModule(nn.Module):
    """A loss as the module that DistributedDataParallel wants. It has the parameters and none of the buffers: those
    are the same everywhere without being sent, as batch norms run over all processes."""

    def __init__(self, update: Update) -> None:
        super().__init__()
        self.parameters_of_update = nn.ParameterList(update.parameters)
        self.loss = update.loss

    def forward(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(batch, step)
