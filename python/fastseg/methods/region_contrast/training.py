# SPDX-License-Identifier: BSD-3-Clause
"""Pretraining on images without labels by contrasting their regions, after USRegCon (J South Med Univ
2023;43(5):815-824), and training with few labels from there.

``stage: pretrain`` learns from the images of ``data.train``; labels there, and ``data.validation``, are for a linear
probe alone. ``stage: finetune`` is supervised training whose ``network.weights`` names the run of the first stage.
Restoration of hidden blocks and contrast of whole images are pretext tasks in the same frame, to compare with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from fastseg.data.annotations import AnnotatedVolume, index_labels
from fastseg.data.buffers import Batch
from fastseg.data.views import View, draw_views
from fastseg.data.volumes import Box
from fastseg.errors import InputError
from fastseg.methods.live_figure import LiveFigure
from fastseg.methods.networks import build_network as build_segmentation_network
from fastseg.methods.region_contrast.config import RegionContrastConfig
from fastseg.methods.region_contrast.facts import FactSums, PretextFacts
from fastseg.methods.region_contrast.figure import draw_pretext
from fastseg.methods.region_contrast.network import NETWORKS
from fastseg.methods.region_contrast.pretexts import PRETEXTS, Outcome
from fastseg.methods.region_contrast.probe import LinearProbe
from fastseg.methods.runs import fit_run, phase_of
from fastseg.methods.supervised import training as supervised
from fastseg.methods.training_data import build_loader
from fastseg.train.checkpoint import RunFolder, write_atomically
from fastseg.train.config import Config
from fastseg.train.folders import each_image
from fastseg.train.inputs import augmentation, open_training
from fastseg.train.ranks import Ranks, join
from fastseg.train.run_lock import writing_alone
from fastseg.train.task import Task


def train(config: Config, *, resume: bool = False, quiet: bool = False) -> RunFolder:
    """Run the stage of a configuration, with the processes that torchrun or the like started."""
    with join(config.train.device) as ranks, writing_alone(config.output, ranks):
        config = each_image(config)
        if config.section(RegionContrastConfig).stage == "finetune":
            if config.network.weights is None:
                raise InputError(
                    "region_contrast.stage finetune begins with a pretrained network: network.weights must name its "
                    "run (for training from nothing use method: supervised)"
                )
            return supervised.train_with(config, ranks, resume=resume, quiet=quiet)
        return _pretrain(config, ranks, resume=resume, quiet=quiet)


def prepare(
    config: Config, ranks: Ranks
) -> tuple[Config, list[AnnotatedVolume], PretrainingTask | supervised.SupervisedTask]:
    """Volumes and task of a run; see registry.py."""
    config = each_image(config)
    if config.section(RegionContrastConfig).stage == "finetune":
        return supervised.prepare(config, ranks)
    volumes = _opened(config)
    return config, volumes, PretrainingTask(config, volumes, ranks)


def build_network(config: Config, channels: int) -> nn.Module:
    """The network of a run that segments; InputError for the first stage's, which does not."""
    if config.section(RegionContrastConfig).stage == "pretrain":
        raise InputError(
            f"{config.output} is a pretraining, which segments nothing: train with region_contrast.stage=finetune and "
            "network.weights naming it"
        )
    return build_segmentation_network(config, channels)


class PretrainingTask(Task):
    """Views of unlabelled patches, the loss of a pretext task, and what it has learnt, for ``fit``."""

    eager_because = "region_contrast compares what two views share, a box of another size at every step"

    def __init__(
        self, config: Config, volumes: list[AnnotatedVolume], ranks: Ranks, run: RunFolder | None = None
    ) -> None:
        settings = config.section(RegionContrastConfig)
        self.config, self.settings, self.ranks, self.device = config, settings, ranks, ranks.device
        self.augmentation = augmentation(config)
        pictured = [replace(v, as_ids=True) if settings.given else AnnotatedVolume(v.raw) for v in volumes]
        self.indexes = [index_labels(volume, config.seed) for volume in pictured]
        everywhere = config.data.sampling.model_copy(
            update={"uniform": 1.0, "labelled": 0.0, "foreground": 0.0}
        )
        data = config.data.model_copy(update={"sampling": everywhere})
        self.loader = build_loader(
            config.model_copy(update={"data": data}),
            pictured,
            self.indexes,
            self.device,
            ranks.places(config.train.batch),
            _margin(config),
        )
        torch.manual_seed(config.seed)
        self.network = NETWORKS[settings.pretext](config, volumes[0].raw.channels).to(self.device)
        self.pretext = PRETEXTS[settings.pretext](config, ranks)
        self.probe = LinearProbe(config, volumes, self.network, ranks)
        self.facts: PretextFacts | None = None
        self.measures: dict[str, float] = {}
        self.drawing = run is not None
        self.figure = LiveFigure(run, "regions", "region_contrast/regions") if run and ranks.first else None

    @property
    def measure(self) -> str:
        """What the best checkpoint is best in. Later trainings begin with the newest all the same."""
        return "dice" if self.probe.held_out else "loss"

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        return self.loader.batches(first, last)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        _, outcome = self._outcome(batch)
        self.pretext.remember(self.network, outcome)
        if self.drawing and step % self.settings.picture_every == 0:
            self._draw(step)
        return outcome.loss, outcome.scalars

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The facts over ``sample_steps`` batches, always the same, and the Dice of the linear probe."""
        sums = FactSums()
        for step in range(self.settings.sample_steps):
            views, outcome = self._outcome(self.loader.load(step))
            sums.add(outcome, views[0].image)
            sums.add_features(self.network.backbone.encode(views[0].image)[-1])
        self.facts = sums.facts(self.ranks)
        self.measures = self.facts.measures() | self.probe.measure()
        return self.measures

    def _outcome(self, batch: Batch) -> tuple[tuple[View, View], Outcome]:
        batch = batch.to(self.device)
        views = draw_views(batch, self.augmentation, self.config.patch, self.config.seed)
        return views, self.pretext.outcome(self.network, views, batch)

    @torch.no_grad()
    def _draw(self, step: int) -> None:
        """The picture of the first batch of all, so that one can see it change. Every process must call it, as they
        contrast their regions with one another; the first one draws."""
        training = self.network.training
        self.network.eval()
        views, outcome = self._outcome(self.loader.load(0))
        sums = FactSums()
        sums.add(outcome, views[0].image)
        facts = sums.facts(self.ranks)
        if self.figure is not None:
            draw_pretext(self.figure, outcome, views, facts, step)
        self.network.train(training)

    def finish(self, step: int) -> None:
        """The last picture; every process must call it."""
        self._draw(step)
        if self.figure is not None:
            self.figure.close()


def _pretrain(config: Config, ranks: Ranks, *, resume: bool, quiet: bool) -> RunFolder:
    with phase_of(config, ranks, resume=resume) as run:
        volumes = _opened(config)
        task = PretrainingTask(config, volumes, ranks, run)
        settings = config.train.model_copy(update={"measure": task.measure})
        fit_run(
            task,
            config,
            volumes[0].raw.channels,
            run,
            ranks,
            settings=settings,
            begins=task.network.backbone,
            resume=resume,
            quiet=quiet,
        )
        if task.facts is None:  # nothing was left to do
            task.network.eval()
            task.validate()
        task.finish(ranks.from_first(run.checkpoints()[-1][0] if ranks.first else None))
        if ranks.first:
            _report(task, run, quiet)
    return run


def _report(task: PretrainingTask, run: RunFolder, quiet: bool) -> None:
    """What was learnt and what went wrong, on the terminal and in ``pretraining.json``."""
    assert task.facts is not None
    notes = task.facts.trouble()
    content = {"pretext": task.settings.pretext, **asdict(task.facts), **task.measures, "notes": notes}
    write_atomically(run.file("pretraining.json"), (json.dumps(content, indent=2) + "\n").encode())
    if not quiet:
        for note in notes:
            print(f"note: {note}", flush=True)
        print(
            f"to train with labels from here: region_contrast.stage=finetune network.weights={run.path}",
            flush=True,
        )


def _opened(config: Config) -> list[AnnotatedVolume]:
    """The images to pretrain on; InputError for what the configuration asks of them in vain."""
    _check(config)
    return open_training(config, labelled=config.section(RegionContrastConfig).given)


def _check(config: Config) -> None:
    if config.data.normalize not in ("range", "percentile"):
        raise InputError(
            "region_contrast compares grey levels from 0, black, to 1, white: data.normalize must be range or "
            f"percentile, got {config.data.normalize}"
        )
    if config.train.stop is not None and config.train.stop.rule == "morphology":
        raise InputError(
            "train.stop: morphology chooses between segmentations, which a pretraining does not make"
        )
    settings = config.section(RegionContrastConfig)
    if settings.given and config.data.validation:
        raise InputError(
            "region_contrast.given takes the labels of data.train for regions, which the linear probe of "
            "data.validation would learn: leave data.validation out"
        )
    batch, pretext = config.train.batch, settings.pretext
    if batch < 2 and not settings.memory and pretext == "images":
        raise InputError(
            f"pretext images tells the images of a batch apart: train.batch must be at least 2, got {batch}"
        )
    if augmentation(config).resamples:
        raise InputError(
            "views of region_contrast are flipped, turned by right angles and shifted: rotate, tilt, scale and elastic "
            "of train.augment must be 0"
        )


def _margin(config: Config) -> Box:
    """How far views may be from the middle, per axis (z, y, x); 0 across the slices of a 2D network."""
    shift, dims = config.section(RegionContrastConfig).shift, len(config.data.patch)
    box = list(shift) if isinstance(shift, list) else [shift] * dims
    if len(box) != dims:
        raise InputError(
            f"region_contrast.shift must be one number or {dims}, one per axis of data.patch, got {shift}"
        )
    if any(2 * s >= p for s, p in zip(box, config.data.patch, strict=True)):
        raise InputError(
            f"region_contrast.shift {shift} must be less than half of data.patch {config.data.patch}, so that views "
            "always share something"
        )
    if dims == 2:
        box.insert(config.slice_axis, 0)
    z, y, x = box
    return (z, y, x)
