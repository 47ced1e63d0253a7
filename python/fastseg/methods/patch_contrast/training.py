# SPDX-License-Identifier: BSD-3-Clause
"""Segmentation without labels by a network of 10,000 parameters, after Boserup & Selvan (arXiv 2208.10779).

K confidence maps are trained so that windows a map is sure about agree where it is high and differ from those where it
is low. Then one map is chosen, without labels or with some, and the training images are segmented. ``<output>`` is a
run as any other; ``<output>/predictions/train_<i>.h5`` are the masks, beside them a PNG for each image file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastseg.data.annotations import AnnotatedVolume, index_labels
from fastseg.data.augment import augment
from fastseg.data.buffers import Batch
from fastseg.data.images import write_mask_image
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError
from fastseg.methods.inference import segment
from fastseg.methods.patch_contrast.channels import (
    ChannelFacts,
    ChannelSums,
    Choice,
    choose_channel,
    describe_trouble,
)
from fastseg.methods.patch_contrast.config import PatchContrastConfig
from fastseg.methods.patch_contrast.figure import LivePicture
from fastseg.methods.patch_contrast.labelled import dice_of_channels
from fastseg.methods.patch_contrast.network import batch_norms, build_network
from fastseg.methods.runs import fit_run, phase_of
from fastseg.methods.training_data import build_loader
from fastseg.nn import PatchContrast
from fastseg.train.checkpoint import RunFolder, write_atomically
from fastseg.train.config import Config, TrainConfig
from fastseg.train.folders import each_image
from fastseg.train.inputs import augmentation, open_training, open_validation
from fastseg.train.ranks import Ranks, join
from fastseg.train.run_lock import writing_alone
from fastseg.train.task import Task, Update

__all__ = ["PatchContrastTask", "build_network", "train"]

# Tells the seeds of window draws from other random numbers of the same seed and step.
_WINDOWS = 5

# Images are predicted whole where they have no larger side, 2D and 3D: then no window's border shows.
_LARGEST_WINDOW = {2: 1024, 3: 256}


def train(config: Config, *, resume: bool = False, quiet: bool = False) -> RunFolder:
    """Train on images without labels and segment them, with the processes that torchrun or the like started."""
    with join(config.train.device) as ranks, writing_alone(config.output, ranks):
        config, volumes = _opened(config)
        with phase_of(config, ranks, resume=resume, sizes=("train.batch", "data.patch")) as run:
            task = PatchContrastTask(config, volumes, ranks, run)
            settings = config.train.model_copy(update={"measure": task.measure})
            channels = volumes[0].raw.channels
            fit_run(task, config, channels, run, ranks, settings=settings, resume=resume, quiet=quiet)
            task.picture.close()
            task.network.load_state_dict(run.load_for_prediction(config.predict.checkpoint)["network"])
            task.network.eval()
            _report_channels(task, run, quiet)
        _segment_all(task, volumes, run, quiet)
    return run


def prepare(config: Config, ranks: Ranks) -> tuple[Config, list[AnnotatedVolume], PatchContrastTask]:
    """Volumes and task of a run; see registry.py."""
    config, volumes = _opened(config)
    return config, volumes, PatchContrastTask(config, volumes, ranks)


class Contrasted(NamedTuple):
    """What the loss takes: intensities for the network, (B, C, z, y, x), those that are contrasted, of the windows'
    axes, the seed of the step's draws, int64 on the device, and the step if it is drawn."""

    image: Tensor
    contrasted: Tensor
    seed: Tensor
    pictured: int | None


class PatchContrastTask(Task):
    """Batches of unlabelled crops, the loss between their windows, and the choice of a channel, for ``fit``."""

    eager_because = None

    def __init__(
        self, config: Config, volumes: list[AnnotatedVolume], ranks: Ranks, run: RunFolder | None = None
    ) -> None:
        settings = config.section(PatchContrastConfig)
        self.config, self.settings, self.ranks, self.device = config, settings, ranks, ranks.device
        if config.data.normalize not in ("range", "percentile"):
            raise InputError(
                "patch_contrast contrasts intensities from 0, black, to 1, white: data.normalize must be range or "
                f"percentile, got {config.data.normalize}"
            )
        self.flat_axis = None if len(config.data.patch) == 3 else config.slice_axis + 2
        self.augmentation = augmentation(config)
        self.indexes = [index_labels(volume, config.seed) for volume in volumes]
        self.loader = build_loader(
            config, volumes, self.indexes, self.device, ranks.places(config.train.batch)
        )
        torch.manual_seed(config.seed)
        self.network = build_network(config, volumes[0].raw.channels).to(self.device)
        if config.train.compile:  # what a step calls; the trainer compiles the whole alone
            self.network.confidence.compile(dynamic=False)
        self.criterion = PatchContrast(
            settings.patch_size,
            settings.stride,
            settings.windows,
            anchors=settings.anchors,
            floor=settings.floor,
            similarity=settings.similarity,
            featuriser=getattr(self.network, "featuriser", None),
            skip_void=settings.void == "skip",
            across_ranks=ranks.count > 1,
        )
        self.held_out = open_validation(config, volumes[0].raw)
        if settings.choice == "labelled" and not self.held_out:
            raise InputError("patch_contrast.choice: labelled needs data.validation to choose by")
        self.picture = LivePicture(run, settings, every=settings.picture_every, on=ranks.first)
        self.optimizer: torch.optim.Optimizer | None = None
        # Of the step at hand, in memory that stays: 1 if it is left out, and D_pp and D_pn.
        self.left_out = torch.zeros((), device=self.device)
        self.distances = torch.full((2,), float("nan"), device=self.device)

    @property
    def measure(self) -> str:
        """What the best checkpoint is best in."""
        return "dice" if self.settings.choice == "labelled" else "separation"

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        return self.loader.batches(first, last)

    def updates(self, settings: TrainConfig) -> list[Update]:
        # Fused, it can be told on the device to leave a step out, as the paper does with a void one.
        self.optimizer = torch.optim.Adam(
            [p for p in self.network.parameters() if p.requires_grad],
            settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        constant = torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=1.0)
        return [Update("network", self.loss, self.optimizer, constant)]

    def inputs(self, batch: Batch, step: int) -> Contrasted:
        self.picture.add_point(step - 1, self.distances)
        seed = int(np.random.default_rng((self.config.seed, step, _WINDOWS)).integers(2**62))
        on_device = torch.full((), seed, dtype=torch.int64, device=self.device)
        return Contrasted(*self._images(batch), on_device, step if self.picture.draws(step) else None)

    def loss(self, batch: Contrasted, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        confidence = self._flat(self.network.confidence(batch.image).float().sigmoid())
        with torch.autocast(self.device.type, enabled=False):
            terms = self.criterion(confidence, batch.contrasted, batch.seed)
        if self.optimizer is not None and self.settings.void == "skip":
            self.optimizer.found_inf = self.left_out.copy_(terms.void)
        positive, negative = terms.positive_distance.mean(), terms.negative_distance.mean()
        with torch.no_grad():
            seen = (~terms.void).double()
            self.network.window_sums += torch.stack([positive, negative, torch.ones_like(positive)]) * seen
            self.distances.copy_(torch.stack([positive, negative]))
        if batch.pictured is not None:
            self.picture.add_point(batch.pictured, self.distances)
            self.picture.draw(batch.pictured, self._flat(batch.image), confidence, terms)
        return terms.loss, {
            "intra": terms.intra.sum(),
            "inter": terms.inter.sum(),
            "positive_distance": positive,
            "negative_distance": negative,
            "entropy": terms.entropy.mean(),
            "void": terms.void.float(),
        }

    def finished(self, done: int) -> bool:
        """Once the windows' separation has grown by less than ``stop_gain`` over ``stop_window`` steps, positives
        being closer to one another than to negatives. One look at the device for each such window."""
        state, settings = self.network, self.settings
        if settings.stop_gain is None or done % settings.stop_window:
            return False
        if not bool(state.converged) and float(state.window_sums[2]) > 0:
            positive, negative, steps = state.window_sums.tolist()
            gap, last = (negative - positive) / steps, float(state.last_gap)
            state.converged.fill_(gap > 0 and last > 0 and gap < (1 + settings.stop_gain) * last)
            state.last_gap.fill_(gap)
            state.window_sums.zero_()
        return bool(self.ranks.from_first(bool(state.converged)))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Recalibrate batch norms, choose the channel, say what is wrong. All of it is kept in the network."""
        self._recalibrate()
        facts = self.look()
        choice = choose_channel(facts, self.settings)
        dice = dice_of_channels(self.network, self.held_out, self.config, self.ranks) if self.held_out else []
        if self.settings.choice == "labelled":
            best = int(np.argmax(dice))
            choice = Choice(best % len(facts), best >= len(facts), True)
        self.network.channel.fill_(choice.channel)
        self.network.inverted.fill_(choice.inverted)
        fact = facts[choice.channel]
        measures = {
            "channel": float(choice.channel),
            # A checkpoint without a plausible channel is the best only while there is no other.
            "separation": fact.separation if choice.plausible else fact.separation - 1.0,
            "gap": fact.gap,
            "entropy": fact.entropy,
            "foreground": 1 - fact.foreground if choice.inverted else fact.foreground,
        }
        if dice:
            chosen = choice.channel + len(facts) * choice.inverted
            measures |= {"dice": dice[chosen], "dice_of_best_channel": max(dice)}
        return measures

    def _images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Intensities for the network, (B, C, z, y, x), and those that are contrasted, of the windows' axes."""
        image, _, _ = augment(batch.to(self.device), self.augmentation, self.config.patch, self.config.seed)
        prepared = self.network.prepare(image)
        if self.settings.contrast == "negative":
            return prepared, self._flat(self.network.prepare(1 - image))
        return prepared, self._flat(prepared)

    def _flat(self, volume: Tensor) -> Tensor:
        return volume if self.flat_axis is None else volume.squeeze(self.flat_axis)

    def _recalibrate(self) -> None:
        """Batch norms take the mean of their statistics over ``sample_steps`` batches, instead of those that trailed
        behind the weights."""
        layers = batch_norms(self.network.confidence) if self.settings.batch_norm == "recalibrated" else []
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
            layer.train()
        for step in range(self.settings.sample_steps if layers else 0):
            self.network.confidence(self._images(self.loader.load(step))[0])
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()

    @torch.no_grad()
    def look(self) -> list[ChannelFacts]:
        """The facts of all channels over ``sample_steps`` batches."""
        sums = ChannelSums(self.settings.channels, self.config.predict.threshold, self.settings)
        for step in range(self.settings.sample_steps):
            image, contrasted = self._images(self.loader.load(step))
            confidence = self._flat(self.network.confidence(image).float().sigmoid())
            terms = self.criterion(confidence, contrasted, step)
            sums.add(confidence, self._flat(image), terms.negative_distance - terms.positive_distance)
        assert sums.total is not None
        return sums.facts(self.ranks.sum(sums.total.cpu()))


def _opened(config: Config) -> tuple[Config, list[AnnotatedVolume]]:
    """The images, an entry for each, and where no window of prediction is stated one as large as the largest of them,
    up to a limit."""
    config = each_image(config)
    volumes = open_training(config, labelled=False)
    if config.predict.window is not None:
        return config, volumes
    dims = len(config.data.patch)
    axes = [a for a in range(3) if dims == 3 or a != config.slice_axis]
    window = [min(max(v.shape[a] for v in volumes), _LARGEST_WINDOW[dims]) for a in axes]
    return config.model_copy(
        update={"predict": config.predict.model_copy(update={"window": window})}
    ), volumes


def _report_channels(task: PatchContrastTask, run: RunFolder, quiet: bool) -> None:
    """Say which channel of the network that predicts is the segmentation, and what may be wrong; in ``channels.json``
    too, with the facts of all channels."""
    facts, settings = task.look(), task.settings
    channel, inverted = int(task.network.channel), bool(task.network.inverted)
    share = 1 - facts[channel].foreground if inverted else facts[channel].foreground
    choice = Choice(channel, inverted, settings.foreground[0] <= share <= settings.foreground[1])
    notes = describe_trouble(facts, choice, settings)
    if not task.ranks.first:
        return
    content = {"choice": asdict(choice), "notes": notes, "channels": [asdict(fact) for fact in facts]}
    write_atomically(run.file("channels.json"), (json.dumps(content, indent=2) + "\n").encode())
    if not quiet:
        how = ", inverted," if inverted else ""
        print(f"channel {channel}{how} is the segmentation: {100 * share:.3g} % foreground")
        for note in notes:
            print(f"note: {note}", flush=True)


def _segment_all(
    task: PatchContrastTask, volumes: list[AnnotatedVolume], run: RunFolder, quiet: bool
) -> None:
    """The masks of all training volumes, as files and, for image files, as images."""
    config, ranks, written = task.config, task.ranks, set()
    for number, volume in enumerate(volumes):
        path = run.file("predictions", f"train_{number}.{config.predict.format}")
        segment(volume.raw, task.network, config, path, ranks, restart=True, quiet=True)
        for z, file in enumerate(volume.raw.image_files if ranks.first else []):
            name = os.path.splitext(os.path.basename(file))[0]
            written.add(name := f"{name}_{number}" if name in written else name)  # of another folder
            mask = open_volume(f"{path}:/segmentation")[z : z + 1]
            write_mask_image(run.file("masks", f"{name}.png"), mask[0, 0])
    if ranks.first and not quiet:
        where = run.file("masks" if written else "predictions")
        print(f"segmented {len(volumes)} volumes: {where}", flush=True)
