# SPDX-License-Identifier: BSD-3-Clause
"""From the configuration to open volumes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace

from fastseg.data.annotations import AnnotatedVolume, Annotation, LabelIndex
from fastseg.data.augment import Augmentation, Probability
from fastseg.data.object_parts import PartsVolume
from fastseg.data.patches import PatchSampler, Sampling
from fastseg.data.resampled import ratio_to, resampled, resampled_annotated
from fastseg.data.volumes import Volume, open_volume
from fastseg.errors import InputError
from fastseg.train.config import Config
from fastseg.train.data_config import AnnotatedConfig, DataConfig, RegionConfig, VolumeConfig, VoxelSize


def open_training(
    config: Config, pseudo_labels: Sequence[str] = (), *, labelled: bool = True
) -> list[AnnotatedVolume]:
    """The training volumes, cropped to their regions; InputError unless they agree in channels and, if they are to be
    ``labelled``, have labels. pseudo_labels: of their regions, a path each."""
    if labelled:
        volumes = _open_labelled(config.data.train, config.data, "training")
    else:
        volumes = [open_annotated(entry, config.data) for entry in config.data.train]
    if pseudo_labels:
        volumes = [
            replace(volume, pseudo=open_volume(path))
            for volume, path in zip(volumes, pseudo_labels, strict=True)
        ]
    _require_channels(volumes, volumes[0].raw, "training")
    return volumes


def open_validation(config: Config, training: Volume) -> list[AnnotatedVolume]:
    """The validation volumes, cropped; InputError unless they have the channels of a training volume."""
    volumes = _open_labelled(config.data.validation, config.data, "validation")
    _require_channels(volumes, training, "validation")
    return volumes


def open_target(config: Config, training: Volume) -> list[AnnotatedVolume]:
    """The volumes of the domain to segment, cropped, with labels or without; InputError as for validation."""
    volumes = [open_annotated(entry, config.data) for entry in config.data.target]
    _require_channels(volumes, training, "target")
    return volumes


def _open_labelled(entries: Sequence[VolumeConfig], data: DataConfig, what: str) -> list[AnnotatedVolume]:
    volumes = [open_annotated(entry, data) for entry in entries]
    for entry in entries:
        if entry.labels is None:
            raise InputError(f"{what} volume {entry.raw} needs labels")
    return volumes


def _require_channels(volumes: Sequence[AnnotatedVolume], first: Volume, what: str) -> None:
    for volume in volumes:
        if volume.raw.channels != first.channels:
            raise InputError(
                f"{what} volumes must agree in channels with the first: {first.name} has {first.channels}, "
                f"{volume.raw.name} has {volume.raw.channels}"
            )


def open_annotated(entry: VolumeConfig, data: DataConfig) -> AnnotatedVolume:
    """One entry of data.train, validation, test or target, cropped to its region and at ``data.voxel_size``."""
    raw = with_voxel_size(_open(entry.raw, data, entry.axes), entry.voxel_size)
    raw = raw.pick(entry.channels or data.channels)
    labels = _open_beside(raw, entry.labels, data, entry.labels_axes) if entry.labels else None
    mask = _open_beside(raw, entry.mask, data, entry.mask_axes) if entry.mask else None
    for what, volume in (("labels", labels), ("mask", mask)):
        if volume is not None and volume.shape != raw.shape:
            channels = f" in {volume.channels} channels" if volume.channels > 1 else ""
            raise InputError(
                f"{what} {volume.name} must have the shape of raw {raw.name}, {raw.shape} (z, y, x), "
                f"got {volume.shape}{channels}; {what}_axes says what its axes are, as in zyx"
            )
    raw = crop(raw, entry.region)
    volume = AnnotatedVolume(
        raw,
        crop(labels, entry.region) if labels else None,
        crop(mask, entry.region) if mask else None,
        _annotation(entry.annotated, raw),
        data.class_ids,
        data.ignore_label,
    )
    if data.voxel_size is not None:
        _require_slices_as_stored(raw, data)
        volume = resampled_annotated(volume, data.voxel_size)
    return _with_parts(volume, data) if data.parts and volume.labels is not None else volume


def _with_parts(volume: AnnotatedVolume, data: DataConfig) -> AnnotatedVolume:
    """With interior and boundaries of the objects as labels. Across annotated slices there is nothing to compare."""
    assert volume.labels is not None
    width = list(data.boundary_width)
    if volume.annotation.slices is not None:
        width[volume.annotation.axis] = 0
    if not any(width):
        raise InputError(
            f"data.boundary: across the annotated slices of {volume.raw.name} nothing is known, and within them the "
            "width is 0"
        )
    labels = PartsVolume(volume.labels, (width[0], width[1], width[2]), volume.mask, data.ignore_label)
    return replace(volume, labels=labels)


def at_voxel_size(volume: Volume, data: DataConfig) -> Volume:
    """A volume to predict, at ``data.voxel_size``."""
    if data.voxel_size is None:
        return volume
    _require_slices_as_stored(volume, data)
    return resampled(volume, data.voxel_size)


def with_voxel_size(volume: Volume, voxel_size: VoxelSize | None) -> Volume:
    """The volume with this voxel size, if any, in place of what its file states."""
    if voxel_size is not None:
        volume.voxel_size = voxel_size
    return volume


def as_stored(config: Config) -> Config:
    """The configuration with all volumes at the voxel size that they are stored at."""
    return config.model_copy(update={"data": config.data.model_copy(update={"voxel_size": None})})


def _require_slices_as_stored(volume: Volume, data: DataConfig) -> None:
    # Between the slices of a 2D network there is nothing to interpolate: it would see mixtures of them.
    assert data.voxel_size is not None
    axis = "zyx".index(data.slice_axis)
    if len(data.patch) == 2 and ratio_to(volume, data.voxel_size)[axis] != 1.0:
        assert volume.voxel_size is not None
        raise InputError(
            f"data.voxel_size must be null along {data.slice_axis}, across the slices of a 2D network, or the "
            f"{volume.voxel_size[axis]:g} of {volume.name}, got {data.voxel_size[axis]:g}"
        )


def build_sampler(config: Config, volumes: list[AnnotatedVolume], indexes: list[LabelIndex]) -> PatchSampler:
    """Where the patches of the batches, of all processes together, are taken."""
    weights = [entry.weight for entry in config.data.train]
    return PatchSampler(
        volumes,
        indexes,
        config.patch,
        Sampling(**config.data.sampling.model_dump()),
        config.seed,
        batch=config.train.batch,
        patches_per_block=config.data.patches_per_block,
        shuffle_steps=config.data.shuffle_steps,
        weights=None if weights[0] is None else [weight or 0.0 for weight in weights],
    )


def augmentation(config: Config) -> Augmentation:
    values = config.train.augment.model_dump()
    return Augmentation(**{**values, "probability": Probability(**values["probability"])})


def _open(path: str, data: DataConfig, axes: str | None = None) -> Volume:
    return open_volume(os.path.join(data.root or ".", os.path.expanduser(path)), axes)


def _open_beside(raw: Volume, path: str, data: DataConfig, axes: str | None) -> Volume:
    """Labels or a mask of a volume. Where the slices of ``raw`` are stated as time points or channels, as ImageJ and
    tifffile do with stacks, they are slices all the same."""
    whole = os.path.join(data.root or ".", os.path.expanduser(path))
    if axes is not None:
        return open_volume(whole, axes, ids=True)
    refused = None
    try:
        volume = open_volume(whole, ids=True)
        if (volume.channels, volume.shape) == (1, raw.shape):
            return volume
    except InputError as error:
        refused = error
    with contextlib.suppress(InputError):
        as_slices = open_volume(whole, "zyx", ids=True)
        if as_slices.shape == raw.shape:
            return as_slices
    if refused is not None:
        raise refused
    return volume


def crop(volume: Volume, region: RegionConfig) -> Volume:
    """The region of a volume; InputError where it reaches beyond."""
    ranges = [
        limits or (0, size) for limits, size in zip((region.z, region.y, region.x), volume.shape, strict=True)
    ]
    return volume.crop([r[0] for r in ranges], [r[1] for r in ranges])


def _annotation(annotated: AnnotatedConfig | None, raw: Volume) -> Annotation:
    if annotated is None:
        return Annotation()
    axis = "zyx".index(annotated.axis)
    if annotated.slices is not None:
        return Annotation(axis, tuple(sorted(set(annotated.slices))))
    low, high = raw.origin[axis], raw.origin[axis] + raw.shape[axis]
    assert annotated.every is not None
    return Annotation(axis, tuple(range(low, high, annotated.every)))
