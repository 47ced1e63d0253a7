# SPDX-License-Identifier: BSD-3-Clause
"""How fast windows are predicted, and how much of that is left with reading, blending and writing around it."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from fastseg.data.volumes import Box, Volume
from fastseg.methods.inference import predictor, replayed, tiling_of
from fastseg.methods.registry import build_network
from fastseg.predict import CHUNK, Grid, Network, Tiling, Waited, predict_to_file
from fastseg.train.config import Config
from fastseg.train.launches import Count, count

# Model and whole take turns so often, so that a machine's slow minute falls on both alike.
_ROUNDS = 5


@dataclass(frozen=True)
class PredictionRates:
    """Windows per second, each the median of the rounds, voxels of one window, and the shares of the whole's time that
    went by waiting for raw data and for the file. batch: what a batch of windows asks of the device without a graph."""

    model: float
    end_to_end: float
    voxels_per_window: int
    reading: float
    writing: float
    batch: Count

    @property
    def efficiency(self) -> float:
        """How much of the model's own speed is left from file to file."""
        return self.end_to_end / self.model

    def lines(self) -> list[str]:
        """A line each of a table."""
        rates = (("model only", self.model), ("file to file", self.end_to_end))
        return [
            f"{'prediction':<12}{'windows/s':>12}{'voxels/s':>14}",
            *(f"{name:<12}{rate:>12.4g}{rate * self.voxels_per_window:>14.4g}" for name, rate in rates),
            f"file to file is {100 * self.efficiency:.1f} % of model only; waiting for raw data took "
            f"{100 * self.reading:.1f} % of the time, for the file {100 * self.writing:.1f} %",
            f"a batch of windows: {self.batch}",
        ]


def measure_prediction(
    config: Config, volume: Volume, device: torch.device, seconds: float
) -> PredictionRates:
    """model: one full batch over and over. end_to_end: a part of ``volume`` of as many windows as take about as long,
    read, predicted, blended, and written to a file in a temporary folder.

    The network has fresh weights. No window is skipped as empty.
    """
    network = build_network(config, volume.channels).to(device).eval()
    predict = predictor(network, volume, config, device)
    tiling = replace(tiling_of(config, predict, volume, device), skip_below=None)
    first = volume.read((0, 0, 0), _smallest(volume.shape, tiling.window))
    window = torch.zeros((volume.channels, *tiling.window), dtype=torch.from_numpy(first).dtype)
    window[tuple(slice(n) for n in first.shape)] = torch.from_numpy(first)
    batch = window.expand(tiling.batch, *window.shape).contiguous().to(device)
    asked = count(lambda: predict(batch))
    predict = replayed(predict, network, tiling.batch, config, device)
    alone = _calls_per_second(lambda: predict(batch), seconds / _ROUNDS, device)
    part = _part(volume, tiling, round(alone * tiling.batch * seconds / _ROUNDS))
    windows = _windows(part.shape, tiling)
    rounds, waited, took = [], Waited(), 0.0
    for _ in range(_ROUNDS):
        model = tiling.batch * _calls_per_second(lambda: predict(batch), seconds / _ROUNDS, device)
        whole = _seconds_for(part, predict, tiling, config, device, waited)
        rounds.append((model, windows / whole))
        took += whole
    model, end_to_end = (statistics.median(column) for column in zip(*rounds, strict=True))
    size = window[0].numel()
    return PredictionRates(model, end_to_end, size, waited.reading / took, waited.writing / took, asked)


def _calls_per_second(run: Callable[[], object], seconds: float, device: torch.device) -> float:
    run()
    _synchronise(device)
    calls, began = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - began < seconds:
        run()
        calls += 1
    _synchronise(device)
    return calls / (time.perf_counter() - began)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds_for(
    part: Volume, predict: Network, tiling: Tiling, config: Config, device: torch.device, waited: Waited
) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        predict_to_file(
            part,
            predict,
            os.path.join(folder, f"prediction.{config.predict.format}"),
            tiling,
            classes=len(config.data.classes or [1]),
            exclusive=config.exclusive,
            probability=config.predict.probability,
            device=device,
            waited=waited,
        )
        return time.perf_counter() - began


def _part(volume: Volume, tiling: Tiling, most: int) -> Volume:
    """A corner of the volume of at most so many windows, about as many along every axis, and one at least."""
    shape = _smallest(volume.shape, tiling.window)
    while True:
        axes = sorted(range(3), key=lambda axis: shape[axis] / tiling.window[axis])
        for axis in axes:
            grown = list(shape)
            grown[axis] = min(volume.shape[axis], shape[axis] + tiling.window[axis])
            if grown[axis] > shape[axis] and _windows((grown[0], grown[1], grown[2]), tiling) <= most:
                shape = (grown[0], grown[1], grown[2])
                break
        else:
            return volume.crop((0, 0, 0), shape)


def _windows(shape: Box, tiling: Tiling) -> int:
    return sum(column.windows for column in Grid(shape, tiling, CHUNK).columns)


def _smallest(shape: Box, window: Box) -> Box:
    z, y, x = (min(n, w) for n, w in zip(shape, window, strict=True))
    return (z, y, x)
