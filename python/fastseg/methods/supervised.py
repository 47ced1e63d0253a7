# SPDX-License-Identifier: BSD-3-Clause
"""A U-Net trained on the annotated voxels alone, with the masked weighted BCE.

Pseudo-labels count too where a mask volume marks them (code 2), with the weight ``loss.pseudo_weight``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastseg.data.annotations import AnnotatedVolume, LabelIndex, index_labels
from fastseg.data.augment import augment
from fastseg.data.buffers import Batch
from fastseg.data.intensity import measure_intensity
from fastseg.data.loader import PatchLoader
from fastseg.data.resident import ResidentLoader, choose_loader
from fastseg.errors import InputError
from fastseg.nets.unet import UNet
from fastseg.nn import MaskedWeightedBCE
from fastseg.train.checkpoint import RunFolder, write_atomically
from fastseg.train.config import Config, dump_config
from fastseg.train.inputs import augmentation, build_sampler, open_training
from fastseg.train.trainer import choose_device, fit

# Keys that may differ between a run and its continuation: they change where or how fast, not what.
_FREE_TO_CHANGE = (
    "output",
    "data.root",
    "data.threads",
    "data.cache_mib",
    "data.resident",
    "data.resident_mib",
    "data.test",
    "train.device",
    "predict",
)


class SliceNetwork(nn.Module):
    """Let a 2D network see volumes of one slice: (B, C, 1, y, x) in and out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image.squeeze(2)).unsqueeze(2)


def build_network(config: Config, channels: int) -> nn.Module:
    """The U-Net of a configuration, from (B, channels, z, y, x) to logits (B, classes, z, y, x)."""
    dims = len(config.data.patch)
    network = UNet(
        dims,
        channels,
        len(config.data.classes or [1]),
        width=config.network.width,
        pooling=config.network.pooling,
        norm=config.network.norm,
    )
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    network = network.to(memory_format=layout)
    return SliceNetwork(network) if dims == 2 else network


class SupervisedTask:
    """Batches and loss for ``fit``. places: those of the batch that are this process's, by default all."""

    def __init__(
        self,
        config: Config,
        volumes: list[AnnotatedVolume],
        device: torch.device,
        places: range | None = None,
    ) -> None:
        self.config, self.device = config, device
        self.indexes = [index_labels(volume, config.seed) for volume in volumes]
        self.augmentation = augmentation(config)
        self.loader = build_loader(config, volumes, self.indexes, device, places)
        torch.manual_seed(config.seed)
        self.network = build_network(config, volumes[0].raw.channels).to(device)
        weight = config.loss.pos_weight
        self.criterion = MaskedWeightedBCE(
            pseudo_weight=config.loss.pseudo_weight,
            pos_weight=torch.tensor(weight) if weight else None,
            normalize=config.loss.normalize,
        ).to(device)

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        return self.loader.batches(first, last)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch = batch.to(self.device)
        image, target, codes = augment(batch, self.augmentation, self.config.patch, self.config.seed)
        logits = self.network(image.contiguous(memory_format=torch.channels_last_3d))
        return self.criterion(logits, target, codes), {}


def build_loader(
    config: Config,
    volumes: list[AnnotatedVolume],
    indexes: list[LabelIndex],
    device: torch.device,
    places: range | None = None,
) -> PatchLoader | ResidentLoader:
    """The loader of a configuration, for ``places`` of its batch."""
    data = config.data
    return choose_loader(
        volumes,
        [measure_intensity(volume.raw, data.normalize) for volume in volumes],
        build_sampler(config, volumes, indexes),
        device,
        resident=data.resident,
        most_bytes=data.resident_mib << 20,
        cache_bytes=data.cache_mib << 20,
        threads=data.threads,
        places=places,
        margin=augmentation(config).margin(config.patch, [v.raw.voxel_size or (1, 1, 1) for v in volumes]),
    )


def train(config: Config, *, resume: bool = False, quiet: bool = False) -> RunFolder:
    """Train the network of a configuration into the folder ``config.output``."""
    run = RunFolder(config.output)
    saved = run.checkpoints()
    if saved and not resume:
        raise InputError(
            f"{run.path} already holds a run at step {saved[-1][0]}: add --resume to go on with it, "
            "or give another output"
        )
    if saved:
        _require_same(config, run.load()["config"], run.path)
    device = choose_device(config.train.device)
    volumes = open_training(config)
    task = SupervisedTask(config, volumes, device)
    if not quiet:
        for volume, index in zip(volumes, task.indexes, strict=True):
            print(describe(volume, index))
    write_atomically(run.file("config.yaml"), dump_config(config).encode())
    extra = {"config": config.model_dump(mode="json"), "channels": volumes[0].raw.channels}
    fit(task, config.train, run, device, resume=resume, extra=extra, quiet=quiet)
    return run


def describe(volume: AnnotatedVolume, index: LabelIndex) -> str:
    """One line on what a training volume holds."""
    total = math.prod(volume.shape)
    known = index.labelled_voxels + index.pseudo_voxels
    slices = volume.annotation.slices
    where = (
        f"{len(slices)} slices along {'zyx'[volume.annotation.axis]}" if slices is not None else "throughout"
    )
    return (
        f"{volume.raw.name}: {volume.shape} {volume.raw.dtype}, annotated {where}: {known:,} voxels "
        f"({100 * known / total:.3g} %), {100 * index.foreground_voxels / max(known, 1):.3g} % of them foreground"
    )


def _require_same(config: Config, saved: dict[str, Any], path: str) -> None:
    now, before = _flatten(config.model_dump(mode="json")), _flatten(saved)
    changed = sorted(
        key
        for key in now.keys() | before.keys()
        if now.get(key) != before.get(key) and not key.startswith(_FREE_TO_CHANGE)
    )
    if changed:
        key = changed[0]
        raise InputError(
            f"{path} was begun with {key} = {before.get(key)!r}, now it is {now.get(key)!r}: a run goes on with "
            "the configuration it was begun with"
        )


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict) and values:
        items = values.items()
    elif isinstance(values, list) and any(isinstance(v, dict) for v in values):
        items = ((str(i), v) for i, v in enumerate(values))
    else:
        return {prefix[:-1]: values}
    return {key: value for name, child in items for key, value in _flatten(child, f"{prefix}{name}.").items()}
