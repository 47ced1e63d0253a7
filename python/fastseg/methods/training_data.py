# SPDX-License-Identifier: BSD-3-Clause
"""The volumes that a method learns from: their patches, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fastseg.data.annotations import AnnotatedVolume, LabelIndex
from fastseg.data.intensity import measure_intensity
from fastseg.data.label_facts import label_warnings
from fastseg.data.loader import PatchLoader
from fastseg.data.resident import ResidentLoader, choose_loader
from fastseg.data.slice_numbers import doubtful_slices
from fastseg.data.volumes import Box
from fastseg.train.config import Config
from fastseg.train.inputs import augmentation, build_sampler


def build_loader(
    config: Config,
    volumes: list[AnnotatedVolume],
    indexes: list[LabelIndex],
    device: torch.device,
    places: range | None = None,
    margin: Box | None = None,
) -> PatchLoader | ResidentLoader:
    """The loader of a configuration, for one process's places in the batch; all by default. margin: around the patch,
    by default what augmentation needs."""
    data = config.data
    if margin is None:
        voxel_sizes = [v.raw.voxel_size or (1, 1, 1) for v in volumes]
        margin = augmentation(config).margin(config.patch, voxel_sizes)
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
        margin=margin,
    )


def suspicious(
    config: Config, volumes: Sequence[AnnotatedVolume], indexes: Sequence[LabelIndex]
) -> list[str]:
    """What is probably not meant in training volumes and their labels, a line each."""
    lines = [line for volume in volumes for line in doubtful_slices(volume)]
    small = [v for v in volumes if any(n < p for n, p in zip(v.shape, config.patch, strict=True))]
    if small:
        more = f" and {len(small) - 1} more" if len(small) > 1 else ""
        lines.append(
            f"{small[0].raw.name}, {small[0].shape} (z, y, x),{more} is smaller than the patch, {config.patch}: "
            "mirrored up to its size, and no label learnt beyond the end; a smaller data.patch would waste less"
        )
    labelled = [(v.labels, i.ids) for v, i in zip(volumes, indexes, strict=True) if v.labels is not None]
    return lines + label_warnings(
        [v for v, _ in labelled], [ids for _, ids in labelled], config.data.class_ids
    )


def describe(volume: AnnotatedVolume, index: LabelIndex) -> str:
    """One line on what a training volume holds."""
    if volume.labels is None:
        return f"{volume.raw.name}: {volume.shape} {volume.raw.dtype}, no labels"
    total = math.prod(volume.shape)
    slices = volume.annotation.slices
    where = "where the mask says" if volume.mask is not None else "throughout"
    if slices is not None:
        where = f"{len(slices)} slices along {'zyx'[volume.annotation.axis]}"
    known = index.labelled_voxels + index.pseudo_voxels
    text = (
        f"{volume.raw.name}: {volume.shape} {volume.raw.dtype}, annotated {where}: {index.labelled_voxels:,} voxels "
        f"({100 * index.labelled_voxels / total:.3g} %), "
    )
    if index.pseudo_voxels:
        text += f"pseudo-labelled: {index.pseudo_voxels:,} ({100 * index.pseudo_voxels / total:.3g} %), "
    return text + f"{100 * index.foreground_voxels / max(known, 1):.3g} % of them foreground"
