# SPDX-License-Identifier: BSD-3-Clause
"""Steps as CUDA graphs on a GPU: the losses of steps without, and what CUDA refuses. `make gpu-check` runs it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastseg.nets.unet import UNet
from fastseg.train.config import TrainConfig
from fastseg.train.graph import WARM_UP
from fastseg.train.ranks import Ranks
from fastseg.train.stepper import Stepper
from fastseg.train.task import Task
from tests.train.test_graph import Game, Toy
from tests.train.toys import SETTINGS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

STEPS = 12


class Volumes(Task):
    """A U-Net on patches of noise."""

    eager_because = None

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.network = UNet(3, 1, 1, width=8).cuda().to(memory_format=torch.channels_last_3d)

    def batches(self, first: int, last: int) -> Iterator[Tensor]:
        for step in range(first, last):
            yield torch.randn(2, 1, 16, 32, 32, generator=torch.Generator().manual_seed(step))

    def inputs(self, batch: Tensor, step: int) -> Tensor:
        return batch.cuda()

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return F.binary_cross_entropy_with_logits(self.network(batch), (batch > 0).float()), {}


def on_gpu(kind: type[Toy]) -> Any:
    class OnGpu(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.network.cuda()

        def batches(self, first: int, last: int) -> Iterator[Tensor]:
            for batch in super().batches(first, last):
                yield batch.cuda()

        def inputs(self, batch: Tensor, step: int) -> Any:
            sample = super().inputs(batch, step)
            return sample._replace(noise=sample.noise.cuda())

    return OnGpu


def losses(task: Task, graph: str, **changes: Any) -> tuple[list[float], Stepper, list[str]]:
    torch.manual_seed(5)
    random.seed(5)
    said: list[str] = []
    settings = TrainConfig(**(SETTINGS | {"graph": graph, "steps": STEPS, "device": "cuda"} | changes))
    stepper = Stepper(task.updates(settings), settings, Ranks(device=torch.device("cuda", 0)), task)
    stepper.tell = said.append
    found = [stepper.step(batch, n)["loss"] for n, batch in enumerate(task.batches(0, STEPS))]
    return [float(loss) for loss in found], stepper, said


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", [on_gpu(Toy), on_gpu(Game), Volumes])
def test_cuda_replayed_steps_have_the_losses_of_eager_ones(kind: type[Task], precision: str) -> None:
    replayed, stepper, said = losses(kind(), "auto", precision=precision)
    assert said == []
    assert stepper.graphed is not None
    assert (stepper.graphed.captures, stepper.graphed.eager) == (1, WARM_UP)
    eager, _, _ = losses(kind(), "off", precision=precision)
    assert replayed == pytest.approx(eager, rel=1e-3 if precision == "fp32" else 5e-2)


def test_cuda_a_batch_of_another_size_runs_as_it_is() -> None:
    task, twin = on_gpu(Toy)(), on_gpu(Toy)()
    task.sizes = twin.sizes = {6: 3, 11: 5}
    replayed, stepper, _ = losses(task, "auto")
    assert stepper.graphed is not None
    assert (stepper.graphed.captures, stepper.graphed.eager) == (1, WARM_UP + 2)
    assert replayed == pytest.approx(losses(twin, "off")[0], rel=1e-3)


def test_cuda_what_waits_for_the_device_runs_on_as_it_is() -> None:
    class Asking(on_gpu(Toy)):  # type: ignore[misc]
        def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
            loss, scalars = super().loss(batch, step)
            float(loss.detach())
            return loss, scalars

    eager, stepper, said = losses(Asking(), "auto")
    assert stepper.graphed is not None
    assert stepper.graphed.captured is None
    assert "the capture failed" in said[0]
    assert eager == pytest.approx(losses(on_gpu(Toy)(), "off")[0], rel=1e-3)
