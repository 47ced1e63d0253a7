# SPDX-License-Identifier: BSD-3-Clause
"""Labels in one domain, none in the other: three ways after Franco-Barranco et al. (CMPB 2022;222:106949).

``none`` learns the source alone, ``pretrain`` restores degraded images of both domains first, ``ynet`` restores and
segments with one encoder, ``style`` gives images of the target the source's style. Every phase but the last is a run in
``<output>/<phase>``; ``<output>`` is the run of the network that segments the target. All go on after a kill where they
were. ``train.stop: morphology`` chooses the checkpoint of the last phase without labels of the target.
"""

from __future__ import annotations

import os

from torch import Tensor, nn

from fastseg.data.annotations import AnnotatedVolume
from fastseg.errors import InputError
from fastseg.methods.domain_adaptation.config import DomainAdaptationConfig, Phase
from fastseg.methods.domain_adaptation.data import Domains, open_domains, with_test_images
from fastseg.methods.domain_adaptation.network import Restyled, YNetwork, freeze, take_over
from fastseg.methods.domain_adaptation.restoration import RestorationTask
from fastseg.methods.domain_adaptation.style import training as style_transfer
from fastseg.methods.networks import SliceNetwork
from fastseg.methods.networks import build_network as build_segmentation_network
from fastseg.methods.runs import fit_run, phase_of, require_fresh_or_same, tell
from fastseg.methods.supervised.training import SupervisedTask, train_task
from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import Config
from fastseg.train.ranks import Ranks, join
from fastseg.train.run_lock import writing_alone
from fastseg.train.stop_config import StopConfig

_PHASES = {
    "pretrain": "restoration of degraded images of both domains",
    "step_1": "Y-Net, step 1: images of both domains and labels of the source",
    "step_2": "Y-Net, step 2: images of both domains",
}


def train(config: Config, *, resume: bool = False, quiet: bool = False) -> RunFolder:
    """Run the phases of a configuration's strategy, with the processes that torchrun or the like started."""
    with join(config.train.device) as ranks, writing_alone(config.output, ranks):
        config = _whole(config)
        run, settings = RunFolder(config.output), config.section(DomainAdaptationConfig)
        if ranks.first:
            require_fresh_or_same(config, run, resume)
        domains = open_domains(config, ranks, run)
        earlier: RunFolder | None = None
        for phase in settings.phases:
            tell(_PHASES[phase], ranks, quiet)
            earlier = _train_phase(config, phase, domains, earlier, ranks, resume=resume, quiet=quiet)
        if settings.strategy == "style":
            tell("images of the target in the style of the source", ranks, quiet)
            earlier = style_transfer.train(config, resume=resume, quiet=quiet, ranks=ranks)
        ranks.meet()  # only then is the last checkpoint there for all to read
        tell("segmentation, from the labels of the source", ranks, quiet)

        def build() -> tuple[list[AnnotatedVolume], SupervisedTask]:
            task = SourceTask(config, domains, ranks)
            if earlier is not None:
                task.begin_with(earlier)
            return domains.sources, task

        return train_task(config, ranks, build, resume=resume, quiet=quiet)


def prepare(config: Config, ranks: Ranks) -> tuple[Config, list[AnnotatedVolume], SupervisedTask]:
    """Volumes and task of the last phase; see registry.py."""
    config = _whole(config)
    domains = open_domains(config, ranks)
    return config, domains.sources, SourceTask(config, domains, ranks)


def build_network(config: Config, channels: int) -> nn.Module:
    """The network of a run that segments the target; InputError for that of pretraining, which does not."""
    settings = config.section(DomainAdaptationConfig)
    if settings.phase in ("pretrain", "style"):
        does = "restores" if settings.phase == "pretrain" else "restyles"
        raise InputError(
            f"{config.output} {does} images, and segments nothing: the run that does is in the folder above it"
        )
    if settings.phase != "all":
        return YNetwork(config, channels)
    network = build_segmentation_network(config, channels)
    if settings.strategy != "style":
        return network
    return Restyled(style_transfer.build_generator(config, channels), network)


def phase_config(config: Config, phase: Phase) -> Config:
    """The configuration of the run of a phase before the last, in a folder of its own."""
    section = config.section(DomainAdaptationConfig)
    settings = getattr(section, phase)
    stop = None
    if settings.patience is not None:
        stop = StopConfig(rule="validation", patience=settings.patience)
    values = {name: getattr(settings, name) for name in ("steps", "batch", "learning_rate")}
    return config.model_copy(
        update={
            "output": os.path.join(config.output, phase),
            "domain_adaptation": section.model_copy(update={"phase": phase}),
            "train": config.train.model_copy(update={**values, "measure": "loss", "stop": stop}),
        }
    )


class SourceTask(SupervisedTask):
    """The last phase: labels of the source alone, after what earlier phases have learnt of both domains."""

    def __init__(self, config: Config, domains: Domains, ranks: Ranks) -> None:
        super().__init__(config, domains.sources, ranks, domains.held_out)
        settings = config.section(DomainAdaptationConfig)
        self.segmenter = self.network
        if settings.phases:
            assert isinstance(self.segmenter, SliceNetwork)
            freeze(self.segmenter, settings.freeze)
        if settings.strategy == "style":
            channels = domains.sources[0].raw.channels
            generator = style_transfer.build_generator(config, channels).to(self.device)
            self.network = Restyled(generator.requires_grad_(False), self.segmenter)

    def segment(self, image: Tensor) -> Tensor:
        return self.segmenter(image)

    def begin_with(self, earlier: RunFolder) -> None:
        """Take over what an earlier phase has learnt."""
        if not isinstance(self.network, Restyled):
            take_over(self.network, earlier)
            return
        state = earlier.load_for_prediction("newest")["network"]
        prefix = "generator."
        self.network.generator.load_state_dict(
            {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        )


def _train_phase(
    config: Config,
    phase: Phase,
    domains: Domains,
    earlier: RunFolder | None,
    ranks: Ranks,
    *,
    resume: bool,
    quiet: bool,
) -> RunFolder:
    config = phase_config(config, phase)
    sizes = (f"domain_adaptation.{phase}.batch", "data.patch", "network.width")
    with phase_of(config, ranks, resume=resume, sizes=sizes) as run:
        task = RestorationTask(config, domains, ranks)
        if earlier is not None:
            take_over(task.network, earlier)
        fit_run(task, config, domains.sources[0].raw.channels, run, ranks, resume=resume, quiet=quiet)
    ranks.meet()  # only then is the last checkpoint there for all to read
    return run


def _whole(config: Config) -> Config:
    if config.section(DomainAdaptationConfig).phase != "all":
        raise InputError(
            f"{config.output} is a phase of the run in the folder above it: go on with that one, with --resume"
        )
    return with_test_images(config)
