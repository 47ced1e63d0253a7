# SPDX-License-Identifier: BSD-3-Clause
"""What a method gives to the trainer: a network, batches, and a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastseg.train.config import TrainConfig

# The loss of a batch at a step, and scalars to log, of the same names on every process. Runs under autocast.
Loss = Callable[[Any, int], tuple[Tensor, dict[str, Tensor]]]


@dataclass
class Update:
    """One backward pass and the optimizer step after it; all parameters are those of the optimizer's groups.

    Each of them must take part in the loss. A loss without a gradient (``requires_grad`` false, on all processes
    alike) skips the optimizer for this step.
    """

    name: str
    loss: Loss
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


class Task:
    """A method as ``fit`` sees it. The least there is to write:

        class Denoise(Task):
            def __init__(self, network, stream, ranks):
                self.network, self.stream, self.places = network.to(ranks.device), stream, ranks.places(8)

            def batches(self, first, last):
                for step in range(first, last):
                    yield torch.stack([self.stream(step, place) for place in self.places])

            def loss(self, batch, step):
                return F.mse_loss(self.network(degrade(batch)), batch), {}

    ``network`` is all that is trained, averaged and saved, an ``nn.ModuleDict`` where there are several. A method in
    phases calls ``fit`` for each, with a task and a run folder of its own.

    With several processes each has a task of its own over its places of the global batch (``Ranks.places``), and
    what is minimised is the mean over processes of what their losses return. A mean over as many things in every
    place needs nothing more; one over a number that differs, as of labelled voxels, must divide by that of all
    processes. Random numbers drawn per (step, place) make the run independent of how many there are.
    """

    network: nn.Module

    # Why a step cannot be replayed as a CUDA graph. None where ``loss`` and ``shared`` depend on what ``inputs`` gives
    # and on the network alone, not on the step or numbers that Python draws, and never wait for the device.
    eager_because: str | None = "the method does not say that its losses are the same work at every step"

    # Measures of ``validate`` of which less is better.
    lower_is_better: frozenset[str] = frozenset({"loss"})

    def batches(self, first: int, last: int) -> Iterator[Any]:
        """This process's batches of steps first .. last - 1. They must depend on the step alone, not on what was
        drawn before: a run that is resumed starts in the middle."""
        raise NotImplementedError

    def inputs(self, batch: Any, step: int) -> Any:
        """What the losses of a step take in place of the batch: nested tuples of tensors on the device and of numbers,
        augmented, with all that depends on the step. Without a gradient, and under autocast."""
        return batch

    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and scalars to log. Runs under autocast."""
        raise NotImplementedError

    def shared(self, batch: Any, step: int) -> Any:
        """What the losses of a step take in place of the batch, made once before the first of them: the batch itself,
        unless a method says otherwise. Runs under autocast. Of several updates it keeps the way back to the parameters
        of each: what a generator has made serves its judge's loss, detached, and then its own."""
        return batch

    def updates(self, settings: TrainConfig) -> list[Update]:
        """What happens in a step, in order. One update of the whole network with AdamW on a one-cycle schedule,
        unless a method says otherwise: two for an adversary, another optimizer, frozen parts left out."""
        return [adamw_update("network", self.network, self.loss, settings)]

    def finished(self, done: int) -> bool:
        """Whether training may end after ``done`` steps, by what the method itself sees; asked after every step, the
        same on every process. What it is decided by must be in ``network``, which checkpoints keep."""
        return False

    def validate(self) -> dict[str, float]:
        """Measures of the network as it stands, in evaluation mode and with averaged weights if there are any; the
        same on every process. Nothing where there is nothing to validate with."""
        return {}


def adamw_update(name: str, network: nn.Module, loss: Loss, settings: TrainConfig) -> Update:
    """AdamW over what requires a gradient, on a one-cycle schedule of ``settings.steps`` steps."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    options = {"weight_decay": settings.weight_decay, **optimizer_options(parameters)}
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, **options)
    return Update(name, loss, optimizer, one_cycle(optimizer, settings))


def optimizer_options(parameters: list[nn.Parameter], *, capturable: bool = True) -> dict[str, bool]:
    """How an optimizer is fast on the device of its parameters: on a GPU by one kernel for all, which keeps what it
    counts on the device. capturable: whether the optimizer has that option, as Adam's kind has."""
    if not all(parameter.is_cuda for parameter in parameters):
        return {}
    return {"fused": True, "capturable": True} if capturable else {"fused": True}


def one_cycle(
    optimizer: torch.optim.Optimizer, settings: TrainConfig
) -> torch.optim.lr_scheduler.LRScheduler:
    """A one-cycle schedule (Smith 2018) of ``settings.steps`` steps with its peak at ``settings.learning_rate``."""
    # OneCycleLR divides by zero where the warm-up is a single step, as in a trial run of five steps.
    steps = max(settings.steps, 2)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=steps, pct_start=max(settings.warmup, 1.5 / steps)
    )
