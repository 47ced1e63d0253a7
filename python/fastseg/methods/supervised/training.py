# SPDX-License-Identifier: BSD-3-Clause
"""A network trained on the annotated voxels alone, with the masked weighted BCE.

Pseudo-labels count too where a mask volume marks them (code 2) or a volume of them is given, with the weight
``loss.pseudo_weight``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastseg.data.annotations import AnnotatedVolume, index_labels
from fastseg.data.augment import augment
from fastseg.data.buffers import Batch
from fastseg.methods.inference import predictor, tiling_of
from fastseg.methods.networks import build_network
from fastseg.methods.runs import fit_run, phase_of
from fastseg.methods.stopping import morphology_chooser
from fastseg.methods.training_data import build_loader, describe, suspicious
from fastseg.methods.validation import Validation
from fastseg.nn import MaskedCrossEntropy, MaskedWeightedBCE
from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import Config
from fastseg.train.inputs import augmentation, open_training, open_validation
from fastseg.train.ranks import Ranks, join
from fastseg.train.run_lock import writing_alone
from fastseg.train.task import Task


class Patches(NamedTuple):
    """What a step learns: image (B, C, z, y, x), target, mask, and what pseudo-labels count."""

    image: Tensor
    target: Tensor
    mask: Tensor
    pseudo_weight: float


class SupervisedTask(Task):
    """Batches, loss and validation for ``fit``, of this process's places in the global batch.

    held_out: the volumes of validation, by default those of the configuration.
    """

    eager_because = None

    def __init__(
        self,
        config: Config,
        volumes: list[AnnotatedVolume],
        ranks: Ranks,
        held_out: list[AnnotatedVolume] | None = None,
    ) -> None:
        self.config, self.device = config, ranks.device
        self.indexes = [index_labels(volume, config.seed) for volume in volumes]
        self.augmentation = augmentation(config)
        places = ranks.places(config.train.batch)
        self.loader = build_loader(config, volumes, self.indexes, self.device, places)
        torch.manual_seed(config.seed)
        self.network = build_network(config, volumes[0].raw.channels).to(self.device)
        self.criterion = build_criterion(config, ranks)
        if held_out is None:
            held_out = open_validation(config, volumes[0].raw)
        predictors = [predictor(self.network, volume.raw, config, self.device) for volume in held_out]
        tilings = [
            tiling_of(config, predict, volume.raw, self.device)
            for predict, volume in zip(predictors, held_out, strict=True)
        ]
        self.validation = Validation(
            held_out,
            predictors,
            tilings,
            config.predict.threshold,
            ranks,
            exclusive=config.exclusive,
            names=config.data.class_names,
        )

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        return self.loader.batches(first, last)

    def inputs(self, batch: Batch, step: int) -> Patches:
        batch = batch.to(self.device)
        image, target, mask = augment(batch, self.augmentation, self.config.patch, self.config.seed)
        image = image.contiguous(memory_format=torch.channels_last_3d)
        return Patches(image, target, mask, self.config.loss.pseudo_weight_at(step, self.config.train.steps))

    def loss(self, batch: Patches, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        self.criterion.pseudo_weight = batch.pseudo_weight
        return self.criterion(self.segment(batch.image), batch.target, batch.mask), {}

    def segment(self, image: Tensor) -> Tensor:
        """Logits of training images."""
        return self.network(image)

    def validate(self) -> dict[str, float]:
        return self.validation.measure()


def build_criterion(config: Config, ranks: Ranks) -> MaskedWeightedBCE | MaskedCrossEntropy:
    weight = config.loss.pos_weight
    if config.exclusive:
        return MaskedCrossEntropy(
            pseudo_weight=config.loss.pseudo_weight, pos_weight=weight, normalize=config.loss.normalize
        ).to(ranks.device)
    return MaskedWeightedBCE(
        pseudo_weight=config.loss.pseudo_weight,
        pos_weight=torch.tensor(weight) if weight else None,
        normalize=config.loss.normalize,
        across_ranks=ranks.count > 1,
    ).to(ranks.device)


def prepare(config: Config, ranks: Ranks) -> tuple[Config, list[AnnotatedVolume], SupervisedTask]:
    """Volumes and task of a run; see registry.py."""
    volumes = open_training(config)
    return config, volumes, SupervisedTask(config, volumes, ranks)


def train(config: Config, *, resume: bool = False, quiet: bool = False) -> RunFolder:
    """Train the network of a configuration into the folder ``config.output``, with the processes that torchrun or
    the like started."""
    with join(config.train.device) as ranks, writing_alone(config.output, ranks):
        return train_with(config, ranks, resume=resume, quiet=quiet)


def train_with(
    config: Config,
    ranks: Ranks,
    *,
    pseudo_labels: Sequence[str] = (),
    resume: bool = False,
    quiet: bool = False,
) -> RunFolder:
    """``train`` with processes that have met already. pseudo_labels: a volume's path for each training volume, or
    none; see ``AnnotatedVolume.pseudo``."""

    def build() -> tuple[list[AnnotatedVolume], SupervisedTask]:
        volumes = open_training(config, pseudo_labels)
        return volumes, SupervisedTask(config, volumes, ranks)

    return train_task(config, ranks, build, resume=resume, quiet=quiet)


def train_task(
    config: Config,
    ranks: Ranks,
    build: Callable[[], tuple[list[AnnotatedVolume], SupervisedTask]],
    *,
    resume: bool = False,
    quiet: bool = False,
) -> RunFolder:
    """Train the task that ``build`` makes, with the volumes it learns, into ``config.output``."""
    sizes = ("train.batch", "data.patch", "network.width", "train.precision")
    with phase_of(config, ranks, resume=resume, sizes=sizes) as run:
        volumes, task = build()
        if ranks.first and not quiet:
            for volume, index in zip(volumes, task.indexes, strict=True):
                print(describe(volume, index))
            for line in suspicious(config, volumes, task.indexes):
                print(f"warning: {line}", flush=True)
        chooser = morphology_chooser(config, volumes, task.network, ranks, run)
        channels = volumes[0].raw.channels
        fit_run(task, config, channels, run, ranks, chooser=chooser, resume=resume, quiet=quiet)
    return run
