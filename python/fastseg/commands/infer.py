# SPDX-License-Identifier: BSD-3-Clause
"""fastseg predict and fastseg evaluate: from a trained run to segmentations, scores and pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastseg.data.annotations import AnnotatedVolume
from fastseg.data.intensity import measure_intensity, scale_intensity
from fastseg.data.volumes import Volume, open_volume
from fastseg.errors import InputError
from fastseg.methods.supervised import build_network
from fastseg.metrics import Confusion, evaluate_volume, total
from fastseg.predict import Tiling, predict_to_file
from fastseg.report import draw_comparison, write_metrics
from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import Config, apply_overrides, load_config, parse_config
from fastseg.train.inputs import open_annotated
from fastseg.train.trainer import autocast_dtype, choose_device


def predict_run(
    path: str,
    *,
    raw: str | None = None,
    output: str | None = None,
    axes: str | None = None,
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> list[str]:
    """Segment the test volumes of a run, or ``raw`` into ``output``; returns the files written."""
    run = RunFolder(path)
    state = run.load()
    config = parse_config(apply_overrides(state["config"], overrides), path)
    if (raw is None) != (output is None):
        raise InputError("--raw and --output go together: a volume to segment and the HDF5 file to write")
    if raw is not None and output is not None:
        if not output.lower().endswith((".h5", ".hdf5")):
            raise InputError(f"--output must end in .h5, got {output}")
        volume = open_volume(raw, axes)
        if os.path.exists(output) and os.path.samefile(output, volume.source.path):
            raise InputError(f"--output {output} is the file that --raw is in: name another")
        jobs = [(volume, output)]
    else:
        if not config.data.test:
            raise InputError(f"{run.file('config.yaml')} names no data.test volume: give --raw and --output")
        jobs = [(volume.raw, prediction_path(run, i)) for i, volume in enumerate(_open_tests(config))]
    device = choose_device(config.train.device)
    network = build_network(config, state["channels"]).to(device)
    network.load_state_dict(state["network"])
    network.eval()
    tiling = Tiling(config.patch, config.predict.overlap, config.predict.block_voxels, config.predict.batch)
    for volume, target in jobs:
        if volume.channels != state["channels"]:
            raise InputError(f"{volume.name} must have {state['channels']} channels, got {volume.channels}")
        predict_to_file(
            volume,
            probability_of(network, volume, config, device),
            target,
            tiling,
            threshold=config.predict.threshold,
            probability=config.predict.probability,
            device=device,
            quiet=quiet,
        )
    return [target for _, target in jobs]


def evaluate_run(path: str) -> tuple[dict[str, Confusion], list[str]]:
    """Score the predictions of a run's test volumes; returns the scores and the files written."""
    run = RunFolder(path)
    config = load_config(run.file("config.yaml"))
    tests = _open_tests(config)
    if not tests:
        raise InputError(f"{run.file('config.yaml')} names no data.test volume to evaluate")
    results: dict[str, list[Confusion]] = {}
    files = []
    for number, truth in enumerate(tests):
        if truth.labels is None:
            raise InputError(f"data.test.{number} ({truth.raw.name}) has no labels to evaluate against")
        if not os.path.exists(prediction_path(run, number)):
            raise InputError(
                f"{prediction_path(run, number)} does not exist: run fastseg predict {path} first"
            )
        prediction = open_volume(f"{prediction_path(run, number)}:/segmentation")
        results[_label(number, truth)] = counts = evaluate_volume(prediction, truth)
        figure = run.file("figures", f"test_{number}.png")
        draw_comparison(figure, truth, prediction, f"{truth.raw.label}: Dice {counts[0].dice:.3f}")
        files.append(figure)
    rows = _rows(results, config)
    write_metrics(run.file("evaluation.json"), rows)
    return rows, [run.file("evaluation.json"), *files]


def prediction_path(run: RunFolder, number: int) -> str:
    return run.file("predictions", f"test_{number}.h5")


def probability_of(
    network: torch.nn.Module, volume: Volume, config: Config, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Raw windows of ``volume`` to probabilities: its intensity scaling, the network, a sigmoid."""
    intensity = measure_intensity(volume, config.data.normalize)
    shift, scale = (torch.tensor([values], device=device) for values in (intensity.shift, intensity.scale))
    precision = autocast_dtype(config.train.precision, device)

    @torch.inference_mode()
    def probability(raw: Tensor) -> Tensor:
        image = scale_intensity(raw, shift, scale).contiguous(memory_format=torch.channels_last_3d)
        with torch.autocast(device.type, precision, enabled=precision is not None):
            logits = network(image)
        return logits.float().sigmoid()

    return probability


def _open_tests(config: Config) -> list[AnnotatedVolume]:
    return [open_annotated(entry, config.data) for entry in config.data.test]


def _label(number: int, truth: AnnotatedVolume) -> str:
    return f"{number}: {truth.raw.label}"


def _rows(results: dict[str, list[Confusion]], config: Config) -> dict[str, Confusion]:
    classes: list[Any] = list(config.data.classes or [None])
    rows = {}
    for name, counts in results.items():
        for value, count in zip(classes, counts, strict=True):
            rows[name if value is None else f"{name} class {value}"] = count
    if len(results) > 1:
        for place, value in enumerate(classes):
            name = "all" if value is None else f"all class {value}"
            rows[name] = total(counts[place] for counts in results.values())
    return rows
