# SPDX-License-Identifier: BSD-3-Clause
"""Style transfer from the target to the source by CUT (Park et al. 2020), as Franco-Barranco et al. (arXiv 2202.10773)
use it: a network trained on the source then segments restyled target images.

Generator and discriminator play against each other on images of ``data.train`` and ``data.target``; labels of either
are not opened. ``<output>/style`` is a run as any other, the newest checkpoint being the one that counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastseg.data.annotations import AnnotatedVolume, index_labels
from fastseg.data.augment import augment
from fastseg.data.buffers import Batch
from fastseg.data.intensity import measure_intensity
from fastseg.methods.domain_adaptation.config import DomainAdaptationConfig
from fastseg.methods.domain_adaptation.style.facts import FactSums
from fastseg.methods.domain_adaptation.style.figure import MOST_IMAGES, Look, draw_styles
from fastseg.methods.domain_adaptation.style.inputs import style_config
from fastseg.methods.domain_adaptation.style.network import StyleGenerator, build_generator
from fastseg.methods.live_figure import LiveFigure
from fastseg.methods.runs import fit_run, phase_of
from fastseg.methods.training_data import build_loader
from fastseg.nets.cut import PatchDiscriminator, ProjectionHeads
from fastseg.nn import PatchNCE
from fastseg.train.checkpoint import RunFolder, write_atomically
from fastseg.train.config import Config, TrainConfig
from fastseg.train.inputs import augmentation, open_target, open_training
from fastseg.train.ranks import Ranks
from fastseg.train.task import Task, Update, optimizer_options

__all__ = ["StyleTask", "build_generator", "load_generator", "train"]

_BETAS = (0.5, 0.999)

# Tells what is drawn for the target from what is drawn for the source of the same seed, and the places of PatchNCE from
# both.
_TARGET, _PLACES = 1 << 20, 7


def train(config: Config, *, resume: bool = False, quiet: bool = False, ranks: Ranks) -> RunFolder:
    """Train the generator from ``data.target`` to the style of ``data.train`` into the folder ``<output>/style``, with
    processes that have met already."""
    config = style_config(config)
    sizes = [f"domain_adaptation.style.{name}" for name in ("batch", "patch", "width")]
    with phase_of(config, ranks, resume=resume, sizes=sizes) as run:
        source = open_training(config, labelled=False)
        target = open_target(config, source[0].raw)
        task = StyleTask(config, source, target, ranks, run)
        settings = config.train.model_copy(update={"measure": "distance"})
        channels = source[0].raw.channels
        fit_run(task, config, channels, run, ranks, settings=settings, resume=resume, quiet=quiet)
        if task.looked is None:  # nothing was left to do
            task.validate()
        if ranks.first:
            task.finish(run.checkpoints()[-1][0])
            _report(task, run, quiet)
        ranks.meet()  # only then is the last checkpoint there for all to read
    return run


def load_generator(config: Config, channels: int, run: RunFolder) -> StyleGenerator:
    """The generator of the newest checkpoint that ``train`` left in a run, in evaluation mode, on the CPU."""
    generator = build_generator(config, channels)
    weights = run.load()["network"]
    prefix = "generator."
    generator.load_state_dict(
        {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    )
    return generator


class Pair(NamedTuple):
    """A batch of either domain."""

    source: Batch
    target: Batch


class Images(NamedTuple):
    """Images (B, C, H, W) of both domains in the generator's range, and for each layer the places of PatchNCE in those
    of the target and, for the identity, the source."""

    source: Tensor
    target: Tensor
    places: list[Tensor]


class Round(NamedTuple):
    """What both players' losses take: images (B, C, H, W) in the generator's range, and what it made of target and, for
    the identity, source images, one after the other, with the features of those."""

    source: Tensor
    made: Tensor
    features: list[Tensor]
    places: list[Tensor]


class StyleTask(Task):
    """The game of generator and discriminator, for ``fit``: batches of both domains, a loss for each, and what has come
    of it."""

    lower_is_better = frozenset({"distance"})
    eager_because = None

    def __init__(
        self,
        config: Config,
        source: list[AnnotatedVolume],
        target: list[AnnotatedVolume],
        ranks: Ranks,
        run: RunFolder | None = None,
    ) -> None:
        self.config, self.ranks, self.device = config, ranks, ranks.device
        self.settings = style = config.section(DomainAdaptationConfig).style
        self.places = ranks.places(style.batch, "domain_adaptation.style.batch")
        self.domains = {
            "source": config,
            "target": config.model_copy(
                update={
                    "seed": config.seed + _TARGET,
                    "data": config.data.model_copy(update={"train": config.data.target}),
                }
            ),
        }
        self.loaders = [
            build_loader(
                domain, volumes, [index_labels(v, config.seed) for v in volumes], self.device, self.places
            )
            for domain, volumes in zip(self.domains.values(), (source, target), strict=True)
        ]
        self.augmentation = augmentation(config)
        torch.manual_seed(config.seed)
        channels = source[0].raw.channels
        self.generator = build_generator(config, channels)
        raws = [volume.raw for volume in source]
        self.generator.set_range(raws, [measure_intensity(raw, config.data.normalize) for raw in raws])
        self.discriminator = PatchDiscriminator(channels, width=style.width)
        self.heads = ProjectionHeads(self.generator.cut.feature_channels, dimensions=style.projection)
        self.network = nn.ModuleDict(
            {"generator": self.generator, "discriminator": self.discriminator, "heads": self.heads}
        ).to(self.device)
        self.criterion = PatchNCE(temperature=style.temperature)
        self.looked: Look | None = None
        self.figure = LiveFigure(run, "style", "style/images") if run is not None and ranks.first else None

    def batches(self, first: int, last: int) -> Iterator[Pair]:
        source, target = (loader.batches(first, last) for loader in self.loaders)
        with closing(source), closing(target):
            for pair in zip(source, target, strict=True):
                yield Pair(*pair)

    def updates(self, settings: TrainConfig) -> list[Update]:
        """The discriminator's, then that of generator and heads, both by Adam at a rate that is constant at first and
        then falls to 0 along a straight line."""
        players = {
            "discriminator": (self.discriminator_loss, [self.discriminator]),
            "generator": (self.generator_loss, [self.generator, self.heads]),
        }
        updates = []
        for name, (loss, modules) in players.items():
            parameters = [p for module in modules for p in module.parameters()]
            options = optimizer_options(parameters)
            optimizer = torch.optim.Adam(parameters, settings.learning_rate, betas=_BETAS, **options)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
            updates.append(Update(name, loss, optimizer, schedule))
        return updates

    def _rate(self, step: int) -> float:
        falling = self.settings.decay * self.settings.steps
        return 1 - max(step + 1 - (self.settings.steps - falling), 0) / (falling + 1)

    def inputs(self, batch: Pair, step: int) -> Images:
        if self.figure is not None and step % self.settings.picture_every == 0:
            draw_styles(self.figure, self._look(self._batches_shown(), Ranks(device=self.device)), step)
        source, target = self._images(batch)
        return Images(source, target, self._places(target, step))

    def shared(self, batch: Images, step: int) -> Round:
        source, target, places = batch
        given = torch.cat([target, source]) if self.settings.identity else target
        made, features = self.generator.cut.translate(given)
        return Round(source, made, features, places)

    def discriminator_loss(self, batch: Round, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Least squares: 1 for source images, 0 for restyled ones."""
        count = len(batch.source)
        scores = self.discriminator(torch.cat([batch.source, batch.made[:count].detach()])).float()
        source, restyled = scores[:count], scores[count:]
        loss = ((source - 1).square().mean() + restyled.square().mean()) / 2
        return loss, {"source": source.detach().mean(), "restyled": restyled.detach().mean()}

    def generator_loss(self, batch: Round, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Restyled images are to be scored 1, and what is at a place is to be told from all else in the image, by
        features of the generator itself."""
        score = self.discriminator(batch.made[: len(batch.source)]).float()
        adversarial = (score - 1).square().mean()
        found = self.generator.cut.encode(batch.made)
        # Of few vectors: float32 costs nothing here.
        with torch.autocast(self.device.type, enabled=False):
            queries = self.heads(found, batch.places)
            with torch.no_grad():
                keys = self.heads(batch.features, batch.places)
            contrast = torch.stack(
                [self.criterion(mine, others) for mine, others in zip(queries, keys, strict=True)]
            ).mean()
        loss = adversarial + self.settings.nce_weight * contrast
        return loss, {"adversarial": adversarial.detach(), "nce": contrast.detach()}

    def validate(self) -> dict[str, float]:
        """The facts over ``sample_steps`` batches, always the same."""
        self.looked = self._look(self.settings.sample_steps, self.ranks)
        return asdict(self.looked.facts)

    @torch.no_grad()
    def _look(self, batches: int, ranks: Ranks) -> Look:
        """At the first batches; every one of ``ranks`` must call it."""
        sums, shown = FactSums(), []
        for step in range(batches):
            source, target = self._images(Pair(*(loader.load(step) for loader in self.loaders)))
            restyled = self.generator.cut(target)
            sums.add(target, restyled, source, self.discriminator(restyled), self.discriminator(source))
            if step < self._batches_shown():
                shown.append(torch.stack([target, restyled, source]).float().cpu())
        facts, levels = sums.facts(ranks)
        return Look(
            facts, levels, dict(zip(("target", "restyled", "source"), torch.cat(shown, 1), strict=True))
        )

    def _batches_shown(self) -> int:
        return -(-MOST_IMAGES // len(self.places))

    def finish(self, step: int) -> None:
        """The last picture, of what was found last."""
        if self.figure is not None and self.looked is not None:
            draw_styles(self.figure, self.looked, step)
            self.figure.close()

    def _images(self, batch: Pair) -> list[Tensor]:
        images = []
        for part, domain in zip(batch, self.domains.values(), strict=True):
            image, _, _ = augment(part.to(self.device), self.augmentation, self.config.patch, domain.seed)
            images.append(self.generator.slices(image))
        return images

    def _places(self, target: Tensor, step: int) -> list[Tensor]:
        """For each layer (images, patches) places, drawn for every image by itself."""
        counts = self.generator.cut.places(*target.shape[2:])
        domains = range(2 if self.settings.identity else 1)
        images = [(which, place) for which in domains for place in self.places]
        drawn: list[list[Any]] = [[] for _ in counts]
        for which, place in images:
            rng = np.random.default_rng((self.config.seed, step, place, which, _PLACES))
            for layer, count in zip(drawn, counts, strict=True):
                layer.append(rng.choice(count, min(self.settings.patches, count), replace=False))
        return [torch.from_numpy(np.stack(layer)).to(self.device) for layer in drawn]


def _report(task: StyleTask, run: RunFolder, quiet: bool) -> None:
    """What the generator does to images and what went wrong, on the terminal and in ``style.json``."""
    assert task.looked is not None
    facts = task.looked.facts
    notes = facts.trouble()
    write_atomically(
        run.file("style.json"), (json.dumps(asdict(facts) | {"notes": notes}, indent=2) + "\n").encode()
    )
    if quiet:
        return
    for note in notes:
        print(f"note: {note}", flush=True)
    print(
        f"grey levels of restyled images are {facts.distance:.3f} off the source's, those of target images "
        f"{facts.distance_before:.3f}; their edges agree by {facts.content:.2f}: {run.file('figures', 'style.png')}",
        flush=True,
    )
