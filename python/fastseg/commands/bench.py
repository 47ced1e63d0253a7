# SPDX-License-Identifier: BSD-3-Clause
"""fastseg bench --pipeline: how fast patches are loaded and learnt, and volumes predicted."""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

import fastseg
from fastseg.commands.bench_prediction import PredictionRates, measure_prediction
from fastseg.methods.registry import method_of, prepare
from fastseg.train.checkpoint import write_atomically
from fastseg.train.config import Config
from fastseg.train.device import device_name
from fastseg.train.launches import Count, count
from fastseg.train.ranks import Ranks, join
from fastseg.train.stepper import Stepper
from fastseg.train.task import Task

# The stages take turns so often, so that a machine's slow minute falls on all of them alike.
_ROUNDS = 5

_ENDLESS = 1 << 30


@dataclass(frozen=True)
class Rates:
    """Patches per second of the stages, each the median of the rounds, and voxels of one patch. step: what a training
    step asks of the device; graphed: what one does whose gradients are replayed, None where none is."""

    loader: float
    model: float
    end_to_end: float
    voxels_per_patch: int
    step: Count
    graphed: Count | None

    @property
    def efficiency(self) -> float:
        """How much of the model's own speed is left with the loader at work."""
        return self.end_to_end / self.model


def measure(config: Config, seconds: float) -> tuple[Config, Rates, PredictionRates | None, str]:
    """The stages of training and, of a network that segments, of prediction, ``seconds`` each; before them the
    configuration with all it implies, and behind them the device."""
    with join(config.train.device) as ranks:
        config, volumes, task = prepare(config, ranks)
        rates = measure_pipeline(task, config, ranks, seconds)
        predicted = None
        if method_of(config).segments(config):
            predicted = measure_prediction(config, volumes[0].raw, ranks.device, seconds)
        return config, rates, predicted, f"{ranks.device} ({device_name(ranks.device)})"


def bench_pipeline(config: Config, seconds: float, path: str | None = None) -> list[str]:
    """Time the stages for ``seconds`` each; a line each of a table, and JSON at ``path`` if given."""
    config, rates, predicted, device = measure(config, seconds)
    if path is not None:
        write_atomically(
            path, (json.dumps(_record(rates, predicted, config, device), indent=2) + "\n").encode()
        )
    return [
        f"{device}, {torch.get_num_threads()} threads, patch {config.patch} (z, y, x), batch {config.train.batch}",
        f"{'':<12}{'patches/s':>12}{'voxels/s':>14}",
        *(
            f"{name:<12}{each:>12.4g}{each * rates.voxels_per_patch:>14.4g}"
            for name, each in (
                ("loader only", rates.loader),
                ("model only", rates.model),
                ("end to end", rates.end_to_end),
            )
        ),
        f"end to end is {100 * rates.efficiency:.1f} % of model only",
        f"a training step: {rates.step}",
        *([] if rates.graphed is None else [f"replayed as a CUDA graph: {rates.graphed}"]),
        *(predicted.lines() if predicted else ()),
    ]


def measure_pipeline(task: Task, config: Config, ranks: Ranks, seconds: float) -> Rates:
    """loader: batches alone. model: steps on one batch over and over. end_to_end: both, as training does.

    The network of ``task`` is trained by it. Where a step takes longer than ``seconds``, it takes three in all.
    """
    stepper, device = endless_stepper(task, config, ranks), ranks.device
    with closing(task.batches(0, _ENDLESS)) as batches:
        first = next(batches)
        stepper.step(first, 0)
        # The second finds the optimizer's state and is not captured yet.
        began = time.perf_counter()
        step = count(lambda: stepper.step(first, 0))
        _synchronise(device)
        took = time.perf_counter() - began

        def load() -> None:
            next(batches)

        def learn() -> None:
            stepper.step(first, 0)

        def both() -> None:
            stepper.step(next(batches), 0)

        # What was read ahead while the stage before ran would be counted as if it had cost nothing.
        ahead = config.data.threads + 2
        stages = ((load, ahead), (learn, 1), (both, ahead))
        rounds: list[list[float]] = []
        if took > seconds:  # each further step counts: one with loading, and that is all
            rounds.append(
                [rate(load, ahead, seconds / _ROUNDS, device), 1 / took, rate(both, 0, 0.0, device)]
            )
        began = time.perf_counter()
        while (
            took <= seconds
            and len(rounds) < _ROUNDS
            and (not rounds or time.perf_counter() - began < len(stages) * seconds)
        ):
            rounds.append([rate(*stage, seconds / _ROUNDS, device) for stage in stages])
        graphed = None
        if stepper.graphed is not None and stepper.graphed.captured is not None:
            beside = count(lambda: stepper.step(first, 0))
            graphed = replace(
                beside, launches=beside.launches + 1
            )  # of the graph, which torch does not dispatch
    loader, model, end_to_end = (
        config.train.batch * statistics.median(column) for column in zip(*rounds, strict=True)
    )
    return Rates(loader, model, end_to_end, math.prod(config.patch), step, graphed)


def endless_stepper(task: Task, config: Config, ranks: Ranks) -> Stepper:
    """Steps whose learning rate does not come to an end before the clock does."""
    settings = config.train.model_copy(update={"steps": _ENDLESS})
    return Stepper(task.updates(settings), settings, ranks, task)


def rate(run: Callable[[], None], uncounted: int, seconds: float, device: torch.device) -> float:
    """Calls per second, after some that are not counted, for as long at most."""
    began = time.perf_counter()
    for _ in range(uncounted):
        run()
        if time.perf_counter() - began > seconds:  # beside a call so long, what was read ahead is little
            break
    _synchronise(device)
    count, began = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - began < seconds:
        run()
        count += 1
    _synchronise(device)
    return count / (time.perf_counter() - began)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _record(rates: Rates, predicted: PredictionRates | None, config: Config, device: str) -> dict[str, Any]:
    stages = {
        name: {"patches_per_second": each, "voxels_per_second": each * rates.voxels_per_patch}
        for name, each in list(asdict(rates).items())[:3]
    }
    return {
        **stages,
        "end_to_end_of_model_only": rates.efficiency,
        "step": asdict(rates.step),
        "graphed_step": None if rates.graphed is None else asdict(rates.graphed),
        "prediction": predicted and {**asdict(predicted), "end_to_end_of_model_only": predicted.efficiency},
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {
            "fastseg": fastseg.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "config": config.model_dump(mode="json"),
    }
