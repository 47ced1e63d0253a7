# SPDX-License-Identifier: BSD-3-Clause
"""One training step: precision, backward, gradients of all processes, clipping, optimizer, schedule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastseg.train.config import TrainConfig
from fastseg.train.device import autocast_dtype
from fastseg.train.graph import Graphed, Graphs, graphs_of
from fastseg.train.ranks import Ranks
from fastseg.train.task import Loss, Task, Update

# torch begins at 2**16, which float16 gradients of a fresh network overflow in the first steps more often than not.
_FIRST_SCALE = 2.0**12

# Options of an optimizer that choose kernels, not what is computed.
_HOW_FAST = ("fused", "foreach", "capturable")


class Stepper:
    """The updates of a task, step by step, with the state that a checkpoint needs."""

    def __init__(
        self,
        updates: list[Update],
        settings: TrainConfig,
        ranks: Ranks,
        task: Task | None = None,
    ) -> None:
        """task: makes of a batch what the losses take; without one they take it as it is."""
        self.task = task
        self.updates, self.clip_norm, self.device = updates, settings.clip_norm, ranks.device
        self.precision = autocast_dtype(settings.precision, ranks.device)
        scaled = self.precision == torch.float16
        self.scaler = torch.amp.GradScaler(ranks.device.type, init_scale=_FIRST_SCALE, enabled=scaled)
        self.losses: list[Loss] = [
            _averaging_gradients(update) if ranks.count > 1 else update.loss for update in updates
        ]

        self.several = len(updates) > 1
        # Says in a line why steps are not replayed as a CUDA graph.
        self.tell: Callable[[str], None] = lambda line: None
        self.wanted = settings.graph == "on" or (settings.graph == "auto" and ranks.device.type == "cuda")
        self.count = ranks.count
        self.graphed: Graphed | None = None
        # Of each optimizer's groups, on the device: a graph has no other way to learn of another rate.
        self.rates = [
            [torch.zeros((), device=ranks.device) for _ in update.optimizer.param_groups]
            for update in updates
        ]

    def step(self, batch: Any, step: int) -> dict[str, Tensor | float]:
        """Take a step; returns what to log, on the device still."""
        if self.wanted:
            self._begin_graphs()
        if self.task is not None:
            with self._autocast():
                batch = self.task.inputs(batch, step)
        row: dict[str, Tensor | float] = {
            f"{self._prefix(update)}learning_rate": update.schedule.get_last_lr()[0]
            for update in self.updates
        }
        if self.graphed is None:
            row |= self._compute(batch, step)
        elif self.several:
            row |= self._replay_all(self.graphed, batch)
        else:
            row |= self._replay_gradients(self.graphed, batch)
        for update in self.updates:
            update.schedule.step()
        return row

    def _compute(self, batch: Any, step: int) -> dict[str, Tensor]:
        """All of a step that is work of the device."""
        row: dict[str, Tensor] = {}
        stepped = False
        if self.task is not None:
            self._train_only(*self.updates)
            with self._autocast():
                batch = self.task.shared(batch, step)
        for update, loss_of in zip(self.updates, self.losses, strict=True):
            found, learnt = self._backward(update, loss_of, batch, step)
            row |= found
            if learnt:
                row |= self._update(update)
                stepped = True
        if stepped:
            self.scaler.update()
        if self.several:
            row["loss"] = torch.stack([row[f"{update.name}_loss"].double() for update in self.updates]).sum()
        return row

    def _backward(
        self, update: Update, loss_of: Loss, batch: Any, step: int
    ) -> tuple[dict[str, Tensor], bool]:
        """What to log, and whether there are gradients."""
        self._train_only(update)
        with self._autocast():
            loss, scalars = loss_of(batch, step)
        if loss.requires_grad:
            self.scaler.scale(loss).backward()
        prefix = self._prefix(update)
        row = {f"{prefix}loss": loss.detach()} | {prefix + name: value for name, value in scalars.items()}
        return row, loss.requires_grad

    def _update(self, update: Update) -> dict[str, Tensor]:
        """Take the gradients to the weights; what to log."""
        row = {}
        if self.clip_norm is not None:
            self.scaler.unscale_(update.optimizer)
            norm = nn.utils.clip_grad_norm_(update.parameters, self.clip_norm)
            row[f"{self._prefix(update)}gradient_norm"] = norm.detach()
        self.scaler.step(update.optimizer)
        update.optimizer.zero_grad(set_to_none=True)
        return row

    def _begin_graphs(self) -> None:
        self.wanted = False
        graphs = self._graphs()
        if isinstance(graphs, str):
            self._say(graphs)
            return
        self.graphed = Graphed(
            self._all_packed if self.several else self._gradients_packed,
            graphs,
            kept=lambda: (p for update in self.updates for p in update.parameters),
            tell=self._say,
            undo=self._undo,
        )

    def _graphs(self) -> Graphs | str:
        """What captures steps, or why nothing does."""
        graphs = graphs_of(self.device)
        if isinstance(graphs, str):
            return graphs
        if self.count > 1:
            return "several processes average their gradients"
        if self.task is None or self.task.eager_because is not None:
            return "there is no task to ask" if self.task is None else str(self.task.eager_because)
        for update in self.updates if self.several else ():
            if not all(g.get("fused") and g.get("capturable", True) for g in update.optimizer.param_groups):
                return f"{type(update.optimizer).__name__} of {update.name} is not fused and capturable"
        return graphs

    def _say(self, reason: str) -> None:
        self.tell(f"steps are not replayed as a CUDA graph (train.graph): {reason}")

    # With one update the graph ends with the gradients, and the optimizer takes them from where they always are: a
    # one-cycle schedule changes its betas, which its kernels take from the host.

    def _gradients_packed(self, batch: Any) -> tuple[list[str], Tensor, bool, list[Tensor | None]]:
        (update,), (loss_of,) = self.updates, self.losses
        assert self.task is not None
        with self._autocast():
            batch = self.task.shared(batch, 0)
        row, learnt = self._backward(update, loss_of, batch, 0)
        return *_packed(row), learnt, [parameter.grad for parameter in update.parameters]

    def _replay_gradients(self, graphed: Graphed, batch: Any) -> dict[str, Tensor]:
        (update,) = self.updates
        names, values, learnt, gradients = graphed(batch)
        row = _unpacked(names, values)
        if learnt:
            for parameter, gradient in zip(update.parameters, gradients, strict=True):
                parameter.grad = gradient
            row |= self._update(update)
            self.scaler.update()
        return row

    # With several, one network learns from the weights that another has just got: optimizers are in the graph. Learning
    # rates reach it by tensors; other options that change, as a schedule may have it, are a step that is not alike.

    def _all_packed(self, inputs: tuple[Any, Any]) -> tuple[list[str], Tensor]:
        return _packed(self._compute(inputs[0], 0))

    def _replay_all(self, graphed: Graphed, batch: Any) -> dict[str, Tensor]:
        options = [
            {name: value for name, value in group.items() if name not in ("params", "lr")}
            for update in self.updates
            for group in update.optimizer.param_groups
        ]
        with self._rates_on_device():
            return _unpacked(*graphed((batch, options)))

    @contextlib.contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Within the block the optimizers find their learning rates on the device. Outside it they are numbers, as
        schedules and checkpoints have them."""
        groups = [
            (group, rate, group["lr"])
            for update, rates in zip(self.updates, self.rates, strict=True)
            for group, rate in zip(update.optimizer.param_groups, rates, strict=True)
        ]
        for group, rate, number in groups:
            group["lr"] = rate.fill_(number)
        try:
            yield
        finally:
            for group, _, number in groups:
                group["lr"] = number

    def _undo(self) -> None:
        """What a capture that broke off has left: gradients, and where the scaler is in a step."""
        for update in self.updates:
            update.optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():
            state = self.scaler.state_dict()
            self.scaler = torch.amp.GradScaler(self.device.type, init_scale=_FIRST_SCALE)
            self.scaler.load_state_dict(state)

    def _prefix(self, update: Update) -> str:
        return f"{update.name}_" if self.several else ""

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)

    def _train_only(self, *trained: Update) -> None:
        # One network's loss runs through another, as a generator's through its adversary, whose gradient is not
        # asked for and must reach neither its optimizer nor the other processes.
        if self.several:
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
            load_optimizer(update.optimizer, state["updates"][update.name]["optimizer"])
            update.schedule.load_state_dict(state["updates"][update.name]["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.graphed is not None:
            self.graphed.forget()


def _packed(row: dict[str, Tensor]) -> tuple[list[str], Tensor]:
    """The names of what is logged, and its values in one tensor."""
    return list(row), torch.stack([value.detach().double() for value in row.values()])


def _unpacked(names: list[str], values: Tensor) -> dict[str, Tensor]:
    """Out of memory that the next replay writes to."""
    return dict(zip(names, values.clone().unbind(), strict=True))


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The state of an optimizer that may have run on another device, by the kernels of this one."""
    groups = [
        saved | {name: own[name] for name in _HOW_FAST if name in own}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


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
