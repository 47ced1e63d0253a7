# SPDX-License-Identifier: BSD-3-Clause
"""The phases that see both domains: degraded images restored, or the Y-Net's images and segmentation together.

A patch of the target has code 0 throughout, so that the masked BCE gives it no gradient, alone or beside patches of the
source in one batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg.data.annotations import AnnotatedVolume, index_labels
from fastseg.data.augment import Augmentation, augment
from fastseg.data.buffers import Batch
from fastseg.data.loader import PatchLoader
from fastseg.data.resident import ResidentLoader
from fastseg.methods.domain_adaptation.config import DomainAdaptationConfig, PretrainConfig
from fastseg.methods.domain_adaptation.data import Domains, mixed
from fastseg.methods.domain_adaptation.network import YNetwork
from fastseg.methods.networks import build_network
from fastseg.methods.supervised.training import build_criterion
from fastseg.methods.training_data import build_loader
from fastseg.train.config import Config, TrainConfig
from fastseg.train.inputs import augmentation
from fastseg.train.ranks import Ranks
from fastseg.train.task import Task, Update, one_cycle, optimizer_options

# Tells the random numbers of degradation from others of the same seed, step and place.
_DEGRADE = 13

# Batches of data.validation that the loss is measured over, always the same.
_HELD_OUT_STEPS = 8


class Restored(NamedTuple):
    """What a step sees and is to restore, (B, C, z, y, x), with target and mask."""

    image: Tensor
    clean: Tensor
    target: Tensor
    mask: Tensor


class RestorationTask(Task):
    """Batches of both domains and the loss of a phase, which ``config.domain_adaptation.phase`` names."""

    eager_because = None

    def __init__(self, config: Config, domains: Domains, ranks: Ranks) -> None:
        settings = config.section(DomainAdaptationConfig)
        self.config, self.ranks, self.device = config, ranks, ranks.device
        self.settings = getattr(settings, settings.phase)
        self.degrades = isinstance(self.settings, PretrainConfig)
        self.bounded = config.data.normalize in ("range", "percentile")  # black is 0, white 1
        self.image_weight, self.mask_weight = (1.0, 0.0) if self.degrades else self.settings.weights
        self.augmentation = augmentation(config)
        drawing, volumes = mixed(config, domains, labelled=self.mask_weight > 0)
        self.indexes = [index_labels(volume, config.seed) for volume in volumes]
        places = ranks.places(config.train.batch, f"domain_adaptation.{settings.phase}.batch")
        self.loader = build_loader(drawing, volumes, self.indexes, self.device, places)
        self.held_out = self._held_out_batches(domains.held_out, places)
        torch.manual_seed(config.seed)
        channels = volumes[0].raw.channels
        if self.degrades:
            self.network = build_network(config, channels, outputs=channels).to(self.device)
        else:
            self.network = YNetwork(config, channels).to(self.device)
            # What no loss reaches must not be moved by weight decay, nor waited for by other processes.
            self.network.network.segmentation.requires_grad_(self.mask_weight > 0)
            self.network.network.reconstruction.requires_grad_(self.image_weight > 0)
            if config.train.compile:  # what a step calls; the trainer compiles the whole alone
                for part in self.network.network.children():
                    part.compile(dynamic=False)
        self.criterion = build_criterion(config, ranks)

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        return self.loader.batches(first, last)

    def inputs(self, batch: Batch, step: int) -> Restored:
        return self._inputs(batch, self.augmentation)

    def loss(self, batch: Restored, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, clean, target, mask = batch
        if self.degrades:
            restored = self.network(image).float()
            restored = restored.sigmoid() if self.bounded else restored
            return (restored - clean).square().mean(), {}
        segment, restore = self.mask_weight > 0, self.image_weight > 0
        logits, restored = self.network.both(image, segment=segment, restore=restore)
        loss, scalars = torch.zeros((), device=self.device), {}
        if restored is not None:
            restoration = (restored.float() - clean).square().mean()
            loss, scalars = loss + self.image_weight * restoration, {"restoration": restoration.detach()}
        if logits is not None:
            segmentation = self.criterion(logits, target, mask)
            loss, scalars = (
                loss + self.mask_weight * segmentation,
                scalars | {"segmentation": segmentation.detach()},
            )
        return loss, scalars

    def updates(self, settings: TrainConfig) -> list[Update]:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        rate, decay = settings.learning_rate, settings.weight_decay
        optimizer: torch.optim.Optimizer
        if self.settings.optimizer == "sgd":
            options = optimizer_options(parameters, capturable=False)
            optimizer = torch.optim.SGD(
                parameters, rate, self.settings.momentum, weight_decay=decay, **options
            )
        else:
            options = optimizer_options(parameters)
            optimizer = torch.optim.AdamW(parameters, rate, weight_decay=decay, **options)
        schedule: torch.optim.lr_scheduler.LRScheduler
        if self.settings.schedule == "one_cycle":
            schedule = one_cycle(optimizer, settings)
        else:
            schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        return [Update("network", self.loss, optimizer, schedule)]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The mean loss over patches of the validation volumes, as they are."""
        if self.held_out is None:
            return {}
        plain = replace(self.augmentation, enabled=False)
        sums: dict[str, float] = {}
        for step in range(_HELD_OUT_STEPS):
            loss, scalars = self.loss(self._inputs(self.held_out.load(step), plain), step)
            for name, value in {"loss": loss, **scalars}.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        total = self.ranks.sum(torch.tensor([*sums.values()], dtype=torch.float64))
        means = (total / (_HELD_OUT_STEPS * self.ranks.count)).tolist()
        return dict(zip(sums, means, strict=True))

    def _held_out_batches(
        self, volumes: list[AnnotatedVolume], places: range
    ) -> PatchLoader | ResidentLoader | None:
        if not volumes:
            return None
        data = self.config.data.model_copy(update={"train": self.config.data.validation})
        config = self.config.model_copy(update={"data": data})
        indexes = [index_labels(volume, config.seed) for volume in volumes]
        return build_loader(config, volumes, indexes, self.device, places, (0, 0, 0))

    def _inputs(self, batch: Batch, settings: Augmentation) -> Restored:
        batch = batch.to(self.device)
        image, target, mask = augment(batch, settings, self.config.patch, self.config.seed)
        if not self.degrades:
            return Restored(_last(image), image, target, mask)
        clean = image.clamp(0, 1) if self.bounded else image
        return Restored(_last(self._degraded(clean, batch)), clean, target, mask)

    def _degraded(self, clean: Tensor, batch: Batch) -> Tensor:
        seeds = [
            int(np.random.default_rng((self.config.seed, batch.step, place, _DEGRADE)).integers(2**63))
            for place in batch.places
        ]
        black = torch.zeros_like(clean[:, :1, :1, :1, :1]) if self.bounded else clean.amin((1, 2, 3, 4), True)
        axis, settings = self.config.slice_axis, self.settings
        degraded = degrade(clean - black, seeds, noise=settings.noise, factor=settings.factor, axis=axis)
        return degraded + black


def degrade(image: Tensor, seeds: list[int], *, noise: float, factor: int, axis: int = 0) -> Tensor:
    """Images (B, C, z, y, x) from 0 on, one slice thick along ``axis``, as a worse microscope had seen them.

    White noise of ``noise`` times the largest value of each image is added, what then lies below 0 or above that value
    is clipped, and the slice is made ``factor`` times smaller along both axes and large again by linear interpolation.
    seeds: of the noise, one for each image. Float32; repeatable on one kind of device. The authors' function
    ``crappify``.
    """
    with torch.autocast(image.device.type, enabled=False):
        peak = image.amax((1, 2, 3, 4), keepdim=True)
        white = torch.stack([_white(image[0], seed) for seed in seeds])
        noisy = torch.minimum((image + noise * peak * white).clamp(min=0), peak).squeeze(axis + 2)
        size = [max(n // factor, 1) for n in noisy.shape[2:]]
        small = F.interpolate(noisy, size, mode="bilinear", align_corners=False)
        return F.interpolate(small, noisy.shape[2:], mode="bilinear", align_corners=False).unsqueeze(axis + 2)


def _white(like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=generator, device=like.device)


def _last(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last_3d)
