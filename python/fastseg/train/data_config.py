# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of the data: volumes, what of them is labelled, and how patches are taken."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fastseg.data.intensity import Mode
from fastseg.data.object_parts import PARTS
from fastseg.data.patches import Sampling
from fastseg.train.section import Axis, NotNegative, Positive, Section

Range = tuple[Annotated[int, Field(ge=0)], Positive]
NotNegativeInt = Annotated[int, Field(ge=0)]
Length = Annotated[float, Field(gt=0, allow_inf_nan=False)]
VoxelSize = tuple[Length, Length, Length]  # micrometres, z y x


Channels = Annotated[list[Annotated[int, Field(ge=0)] | str] | None, Field(min_length=1)]


class RegionConfig(Section):
    """The part of a volume to use, [first, last) per axis in voxels of the file."""

    z: Range | None = None
    y: Range | None = None
    x: Range | None = None


class AnnotatedConfig(Section):
    """Which slices are annotated: every n-th of the region from its first, or a list in the file's numbers."""

    axis: Axis = "z"
    every: Positive | None = None
    slices: list[Annotated[int, Field(ge=0)]] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> AnnotatedConfig:
        if (self.every is None) == (self.slices is None):
            raise ValueError("give either every or slices")
        return self


class VolumeConfig(Section):
    """One volume. Paths are relative to data.root; HDF5 as file.h5:/dataset."""

    raw: str
    labels: str | None = None
    mask: str | None = None
    axes: str | None = None
    labels_axes: str | None = None
    mask_axes: str | None = None
    channels: Channels = None  # in place of data.channels
    pairs: str | None = None  # a CSV file of raw,labels for folders whose names do not pair up
    region: RegionConfig = RegionConfig()
    voxel_size: VoxelSize | None = None  # in place of what the file states
    annotated: AnnotatedConfig | None = None
    weight: Annotated[float, Field(gt=0)] | None = None


class SamplingConfig(Section):
    uniform: NotNegative = Sampling.uniform
    labelled: NotNegative = Sampling.labelled
    foreground: NotNegative = Sampling.foreground

    @model_validator(mode="after")
    def _some(self) -> SamplingConfig:
        if self.uniform + self.labelled + self.foreground <= 0:
            raise ValueError("at least one share must be positive")
        return self


class DataConfig(Section):
    root: str | None = None  # the config file's own folder
    train: list[VolumeConfig] = Field(min_length=1)
    validation: list[VolumeConfig] = Field([])
    test: list[VolumeConfig] = Field([])
    target: list[VolumeConfig] = Field(
        []
    )  # of the domain to segment; labels are reported on and decide nothing
    voxel_size: tuple[Length | None, Length | None, Length | None] | None = (
        None  # None along an axis: as stored
    )
    patch: list[Positive]
    slice_axis: Axis = "z"  # across the slices that a 2D network sees
    channels: Channels = None  # of all volumes, by number from 0 or by name; None: all that there are
    classes: list[int | str] | dict[str, int | str] | None = (
        None  # ids, or names of ids; interior and boundary are those of objects
    )
    boundary: Positive | list[NotNegativeInt] = 1  # how many voxels wide, or one width per axis of the patch
    exclusive: bool = True  # a voxel is of one class at most
    ignore_label: int | None = None
    normalize: Mode = "zscore"
    sampling: SamplingConfig = SamplingConfig()
    threads: Positive = 2
    patches_per_block: Positive = 4
    shuffle_steps: Positive = 8
    cache_mib: Positive = 512
    resident: bool | Literal["auto"] = "auto"
    resident_mib: Positive = 1024

    @model_validator(mode="after")
    def _all_weights(self) -> DataConfig:
        weights = [entry.weight for entry in self.train]
        if None in weights and any(weight is not None for weight in weights):
            raise ValueError("give every training volume a weight or none: a weight is the share of patches")
        return self

    @field_validator("classes", mode="before")
    @classmethod
    def _ids_or_names_of_ids(cls, value: Any) -> Any:
        names, ids = (value.keys(), value.values()) if isinstance(value, dict) else ((), value)
        each = [*(ids or ())] if isinstance(value, list | dict | None) else [None]
        of_objects = all(isinstance(i, str) and i in PARTS for i in each)
        if not all(isinstance(name, str) for name in names) or not (
            of_objects or all(type(i) is int for i in each)
        ):
            raise ValueError(
                "must be ids, as in [1, 2], or names of ids, as in {nucleus: 1}, or parts of objects, interior and "
                f"boundary, got {value!r}"
            )
        return value

    @model_validator(mode="after")
    def _classes_differ(self) -> DataConfig:
        ids = self.class_ids or ()
        if len(set(ids)) < len(ids):
            raise ValueError(f"classes must be different ids, got {list(ids)}")
        if self.exclusive and 0 in ids and len(ids) > 1:
            raise ValueError("classes must leave out 0: what is none of them is background")
        return self

    @property
    def class_ids(self) -> tuple[int, ...] | None:
        """None: everything but 0 is one class."""
        ids = self.classes.values() if isinstance(self.classes, dict) else self.classes or ()
        return tuple(PARTS[i] if isinstance(i, str) else i for i in ids) or None

    @property
    def parts(self) -> bool:
        """Whether the classes are parts of objects."""
        ids = self.classes.values() if isinstance(self.classes, dict) else self.classes or ()
        return any(isinstance(i, str) for i in ids)

    @property
    def boundary_width(self) -> tuple[int, int, int]:
        """In (z, y, x): within the slices of a 2D network."""
        dims = len(self.patch)
        width = [self.boundary] * dims if isinstance(self.boundary, int) else list(self.boundary)
        if dims == 2:
            width.insert("zyx".index(self.slice_axis), 0)
        return width[0], width[1], width[2]

    @property
    def class_names(self) -> list[str]:
        """Ids where they have no name."""
        return [str(name) for name in self.classes or ()]

    @model_validator(mode="after")
    def _patch_axes(self) -> DataConfig:
        if len(self.patch) not in (2, 3):
            raise ValueError(f"patch must be [y, x] for a 2D or [z, y, x] for a 3D network, got {self.patch}")
        if not isinstance(self.boundary, int) and (
            len(self.boundary) != len(self.patch) or not any(self.boundary)
        ):
            raise ValueError(
                f"boundary must be a width in voxels or one per axis of patch {self.patch}, got {self.boundary}"
            )
        return self
