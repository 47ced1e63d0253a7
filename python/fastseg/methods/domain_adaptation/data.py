# SPDX-License-Identifier: BSD-3-Clause
"""Both domains of an adaptation: the source with its labels, matched or not, and the target without any.

Labels of the target are taken off here, before anything can learn from them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastseg.data.annotations import AnnotatedVolume, Annotation
from fastseg.data.histogram import Lookup, MatchedVolume, histogram_of, match_histograms
from fastseg.errors import InputError
from fastseg.methods.domain_adaptation.config import DomainAdaptationConfig
from fastseg.train.checkpoint import RunFolder, write_atomically
from fastseg.train.config import Config
from fastseg.train.data_config import VolumeConfig
from fastseg.train.inputs import open_target, open_training, open_validation
from fastseg.train.ranks import Ranks

HISTOGRAM_FILE = "histograms.json"

# Patches of the source that are placed anywhere, where the configuration wants none: the sampler must have some.
_LEAST_UNIFORM = 1e-3


@dataclass(frozen=True)
class Domains:
    """Source and validation have their labels and, if that is asked for, the target's histogram."""

    sources: list[AnnotatedVolume]
    held_out: list[AnnotatedVolume]
    targets: list[AnnotatedVolume]


def with_test_images(config: Config) -> Config:
    """With ``transductive`` the volumes of data.test are among those of data.target."""
    data = config.data
    if not config.section(DomainAdaptationConfig).transductive:
        return config
    more = [entry for entry in data.test if entry not in data.target]
    return config.model_copy(update={"data": data.model_copy(update={"target": [*data.target, *more]})})


def open_domains(config: Config, ranks: Ranks, run: RunFolder | None = None) -> Domains:
    """The volumes of a run. run: keeps what matching has measured, so that no volume is read for it twice."""
    sources = open_training(config)
    held_out = open_validation(config, sources[0].raw)
    targets = [without_labels(volume) for volume in open_target(config, sources[0].raw)]
    if config.section(DomainAdaptationConfig).matching:
        changed = [*sources, *held_out]
        _check_comparable(changed, targets)
        found = ranks.from_first(_measured_once(config, changed, targets, run) if ranks.first else None)
        matched = [
            replace(volume, raw=MatchedVolume(volume.raw, Lookup(*map(np.asarray, lookup))))
            for volume, lookup in zip(changed, found, strict=True)
        ]
        sources, held_out = matched[: len(sources)], matched[len(sources) :]
    return Domains(sources, held_out, targets)


def without_labels(volume: AnnotatedVolume) -> AnnotatedVolume:
    return replace(volume, labels=None, mask=None, annotation=Annotation())


def mixed(config: Config, domains: Domains, labelled: bool) -> tuple[Config, list[AnnotatedVolume]]:
    """Volumes of both domains and the configuration that draws patches from them, ``target_share`` of the target.

    Those of the target are placed anywhere; those of the source as data.sampling says, or anywhere without labels.
    """
    share, sampling = config.section(DomainAdaptationConfig).target_share, config.data.sampling
    total = sampling.uniform + sampling.labelled + sampling.foreground
    anywhere = max(sampling.uniform / total, _LEAST_UNIFORM) if labelled else 1.0
    # Of patches placed anywhere this many are the target's, so that it has its share of all.
    weights = [
        *_shares(config.data.train, domains.sources, (1 - share) * anywhere),
        *_shares(config.data.target, domains.targets, share),
    ]
    entries = [
        entry.model_copy(update={"weight": weight})
        for entry, weight in zip([*config.data.train, *config.data.target], weights, strict=True)
    ]
    shares = {"uniform": share + (1 - share) * anywhere, "labelled": 0.0, "foreground": 0.0}
    if labelled:
        shares |= {name: (1 - share) * getattr(sampling, name) / total for name in ("labelled", "foreground")}
    data = config.data.model_copy(
        update={"train": entries, "sampling": sampling.model_copy(update=shares)},
    )
    sources = domains.sources if labelled else [without_labels(volume) for volume in domains.sources]
    return config.model_copy(update={"data": data}), [*sources, *domains.targets]


def _shares(entries: Sequence[VolumeConfig], volumes: Sequence[AnnotatedVolume], whole: float) -> list[float]:
    """``whole`` shared out by the weights of the entries, or by voxels where some have none."""
    sizes = [entry.weight for entry in entries]
    if None in sizes:
        sizes = [float(math.prod(volume.shape)) for volume in volumes]
    total = sum(size or 0.0 for size in sizes)
    return [whole * (size or 0.0) / total for size in sizes]


def _check_comparable(sources: Sequence[AnnotatedVolume], targets: Sequence[AnnotatedVolume]) -> None:
    first = targets[0].raw
    for volume in [*targets, *sources]:
        raw = volume.raw
        if raw.channels != 1:
            raise InputError(
                f"domain_adaptation.match_histograms takes grey images of one channel, {raw.name} has {raw.channels}"
            )
        if raw.dtype != first.dtype:
            raise InputError(
                f"domain_adaptation.match_histograms needs source and target of one dtype: {first.name} has "
                f"{first.dtype}, {raw.name} has {raw.dtype}"
            )


def _measured_once(
    config: Config,
    changed: Sequence[AnnotatedVolume],
    targets: Sequence[AnnotatedVolume],
    run: RunFolder | None,
) -> list[list[list[float]]]:
    """Grey levels of each volume and what they become; read from the run if they are there."""
    data = config.data
    record: dict[str, Any] = {
        "source": [_identity(entry) for entry in (*data.train, *data.validation)],
        "target": [_identity(entry) for entry in data.target],
    }
    path = run.file(HISTOGRAM_FILE) if run is not None else None
    if path is not None and os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            stored = json.load(file)
        if {key: stored.get(key) for key in record} == record:
            return stored["lookups"]
    target = histogram_of([volume.raw for volume in targets])
    lookups = [match_histograms(histogram_of([volume.raw]), target) for volume in changed]
    record["lookups"] = [[lookup.values.tolist(), lookup.matched.tolist()] for lookup in lookups]
    if path is not None:
        write_atomically(path, json.dumps(record).encode())
    return record["lookups"]


def _identity(entry: VolumeConfig) -> Any:
    return entry.model_dump(mode="json", include={"raw", "axes", "channels", "region"})
