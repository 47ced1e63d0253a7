# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of several processes run in each of them; every scenario works in a single process too."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastseg.cli import main
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError
from fastseg.methods.config_file import load_config
from fastseg.methods.supervised.training import SupervisedTask
from fastseg.nets.batch_norm import synchronise_batch_norm
from fastseg.nn import MaskedWeightedBCE
from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import TrainConfig
from fastseg.train.inputs import open_training
from fastseg.train.ranks import Ranks, join
from fastseg.train.task import Task
from fastseg.train.trainer import fit
from tests.train.toys import SETTINGS, Adversaries

NORMALIZE = ("voxels", "weight", "terms")
IMPL = ("fused", "reference")
MASKS = ("uneven", "one-sided", "nothing")


def train_in_doubles(folder: Path, ranks: Ranks, *overrides: str) -> None:
    """The supervised method in float64, in which rounding cannot hide a wrong formula."""
    config = load_config(folder / "run.yaml", ["train.precision=fp32", *overrides])
    task = SupervisedTask(config, open_training(config), ranks)
    task.network.double().register_forward_pre_hook(lambda _, arguments: (arguments[0].double(),))
    extra = {"config": config.model_dump(mode="json"), "channels": 1}
    fit(task, config.train, RunFolder(config.output), ranks, extra=extra, quiet=True)


def loss_case(normalize: str, impl: str, masks: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A loss in float64 and a global batch of four samples whose labels are spread unevenly."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, 2, 3, 6, 5)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.rand(shape, generator=generator) > 0.5
    weight = 0.5 + torch.rand((4, 1, 3, 6, 5), generator=generator, dtype=torch.float64)
    mask = torch.randint(0, 3, (4, 1, 3, 6, 5), generator=generator, dtype=torch.uint8)
    mask[:2] *= torch.rand(mask[:2].shape, generator=generator) < 0.2
    if masks == "one-sided":
        mask[2:] = 0
    elif masks == "nothing":
        mask[:] = 0
    criterion = MaskedWeightedBCE(
        pseudo_weight=0.3, pos_weight=[2.0, 0.5], normalize=normalize, impl=impl, across_ranks=True
    )
    return criterion, (logits, target, mask, weight)


def losses(folder: Path, ranks: Ranks) -> None:
    """Loss and mean gradient of every case, from each process's part of the batch."""
    results = {}
    for case in itertools.product(NORMALIZE, IMPL, MASKS):
        criterion, batch = loss_case(*case)
        places = ranks.places(4)
        logits, target, mask, weight = (tensor[places.start : places.stop] for tensor in batch)
        logits = logits.clone().requires_grad_()
        loss = criterion(logits, target, mask, weight)
        loss.backward()
        parts = ranks.gather(logits.grad / ranks.count)
        results[case] = (ranks.gather(loss.detach()), torch.cat(parts))
    if ranks.first:
        torch.save(results, folder / f"losses_{ranks.count}.pt")


def batch_norm(folder: Path, ranks: Ranks) -> None:
    """Two steps of a batch norm over uneven parts: outputs, gradients, running statistics."""
    torch.manual_seed(0)
    layer: nn.Module = nn.Sequential(nn.BatchNorm3d(3).double())
    nn.init.uniform_(layer[0].weight)
    if ranks.count > 1:
        synchronise_batch_norm(layer, ranks.device)
    image = torch.randn(5, 3, 2, 3, 4, dtype=torch.float64) * 3 + 7
    part = image if ranks.count == 1 else image[:2] if ranks.first else image[2:]
    part = part.clone().requires_grad_()
    for _ in range(2):
        out = layer(part)
        (out * torch.arange(24.0).view(2, 3, 4)).square().sum().backward()
    layer.eval()
    results = {
        "out": torch.cat(ranks.gather(out.detach())),
        "evaluated": torch.cat(ranks.gather(layer(part).detach())),
        "image": torch.cat(ranks.gather(part.grad)),
        "weight": sum(ranks.gather(layer[0].weight.grad)),
        "bias": sum(ranks.gather(layer[0].bias.grad)),
        **{name: value.double() for name, value in layer.state_dict().items()},
    }
    if ranks.first:
        torch.save(results, folder / f"batch_norm_{ranks.count}.pt")


def adversaries(folder: Path, ranks: Ranks) -> None:
    """Two updates per step, one of which is skipped at odd steps."""
    task = Adversaries(ranks.places(6))
    task.network.double()
    batches = task.batches
    task.batches = lambda first, last: (batch.double() for batch in batches(first, last))
    fit(task, TrainConfig(**SETTINGS), RunFolder(folder / f"adversaries_{ranks.count}"), ranks, quiet=True)


class Trouble(Task):
    """Fails in some way at step 3 on the last process."""

    def __init__(self, how: str, ranks: Ranks) -> None:
        self.how, self.ranks, self.network = how, ranks, nn.Linear(2, 1)

    def batches(self, first: int, last: int) -> Any:
        return iter([torch.ones(1, 2)] * (last - first))

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if step == 3 and self.ranks.first and self.how == "stuck":
            time.sleep(600)  # as in an operation of a GPU that waits for the other
        if step == 3 and self.ranks.rank == self.ranks.count - 1:
            if self.how in ("input", "stuck"):
                raise InputError("volume 7 is made of cheese")
            if self.how == "bug":
                raise KeyError("lost key")
            if self.how == "asked":
                signal.raise_signal(signal.SIGUSR1)
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        return self.network(batch).mean(), {}


def trouble(folder: Path, how: str) -> None:
    config = load_config(folder / "run.yaml")
    with join("cpu") as ranks:
        fit(Trouble(how, ranks), config.train, RunFolder(folder / "trouble"), ranks, quiet=True)


def scenario(name: str, folder: Path, *arguments: str) -> None:
    if name == "trouble":
        trouble(folder, *arguments)
        return
    with join("cpu") as ranks:
        if name == "agreement":
            losses(folder, ranks)
            batch_norm(folder, ranks)
            adversaries(folder, ranks)
        elif name == "train":
            train_in_doubles(folder, ranks, *arguments)
        elif name == "read":
            open_volume(arguments[0])


if __name__ == "__main__":
    sys.argv = ["fastseg", *sys.argv[1:]]
    # Through the command line's own handling of errors.
    from unittest.mock import patch

    with patch("fastseg.cli.app", lambda: scenario(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])):
        main()
