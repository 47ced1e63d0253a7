# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of a run: one YAML file, checked whole before anything starts, with dotted overrides."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from fastseg.data.intensity import Mode
from fastseg.data.patches import Sampling
from fastseg.errors import InputError
from fastseg.nets.unet import Norm
from fastseg.train.augment_config import AugmentConfig
from fastseg.train.predict_config import PredictConfig
from fastseg.train.section import NotNegative, Positive, Section

Range = tuple[Annotated[int, Field(ge=0)], Positive]


class RegionConfig(Section):
    """The part of a volume to use, [first, last) per axis in voxels of the file."""

    z: Range | None = None
    y: Range | None = None
    x: Range | None = None


class AnnotatedConfig(Section):
    """Which slices are annotated: every n-th of the region from its first, or a list in the file's numbers."""

    axis: Literal["z", "y", "x"] = "z"
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
    region: RegionConfig = RegionConfig()
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
    patch: list[Positive]
    classes: list[int] | None = None
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

    @model_validator(mode="after")
    def _patch_axes(self) -> DataConfig:
        if len(self.patch) not in (2, 3):
            raise ValueError(f"patch must be [y, x] for a 2D or [z, y, x] for a 3D network, got {self.patch}")
        return self


class NetworkConfig(Section):
    width: Positive = 16
    pooling: list[Positive | list[Positive]] = Field([2, 2, 2])
    norm: Norm = "instance"


class LossConfig(Section):
    pseudo_weight: NotNegative = 0.25
    pos_weight: list[NotNegative] | None = None
    normalize: Literal["voxels", "weight", "terms"] = "voxels"


class StopConfig(Section):
    """When training ends early: after ``patience`` validations that did not gain more than ``gain``."""

    patience: Positive
    gain: NotNegative = 0.0


class TrainConfig(Section):
    steps: Positive = 2000
    batch: Positive = 2
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.2
    weight_decay: NotNegative = 1e-4
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    compile: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    checkpoint_every: Positive = 500
    validate_every: Positive = 500
    measure: Literal["dice", "loss"] = "dice"
    stop: StopConfig | None = None
    augment: AugmentConfig = AugmentConfig()

    @field_validator("augment", mode="before")
    @classmethod
    def _off_by_one_word(cls, value: Any) -> Any:
        return {"enabled": False} if value == "none" else value


class Config(Section):
    method: Literal["supervised"] = "supervised"
    output: str
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig
    network: NetworkConfig = NetworkConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()

    @model_validator(mode="after")
    def _patch_fits_network(self) -> Config:
        dims = len(self.data.patch)
        divisor = [1] * dims
        for stride in self.network.pooling:
            strides = [stride] * dims if isinstance(stride, int) else stride
            if len(strides) != dims:
                raise ValueError(
                    f"network.pooling: {strides} must have one stride per axis of data.patch {self.data.patch}"
                )
            divisor = [d * s for d, s in zip(divisor, strides, strict=True)]
        if any(p % d for p, d in zip(self.data.patch, divisor, strict=True)):
            raise ValueError(
                f"data.patch {self.data.patch} must be a multiple of {divisor}, the product of network.pooling"
            )
        channels = len(self.data.classes or [1])
        if self.loss.pos_weight is not None and len(self.loss.pos_weight) != channels:
            raise ValueError(f"loss.pos_weight must have {channels} values, one per class")
        if self.train.stop is not None and not self.data.validation:
            raise ValueError("train.stop needs data.validation, the volumes to judge by")
        return self

    @property
    def patch(self) -> tuple[int, int, int]:
        """The patch as (z, y, x); one slice for a 2D network."""
        z, y, x = [1, *self.data.patch][-3:]
        return (z, y, x)


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Read ``path``, apply overrides such as ``train.steps=100``, check all. InputError names the key."""
    path = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is no readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold keys and values, got {type(values).__name__}")
    config = parse_config(apply_overrides(values, overrides), path)
    root = config.data.root if config.data.root is not None else os.path.dirname(path) or "."
    data = config.data.model_copy(update={"root": os.path.abspath(os.path.expanduser(root))})
    return config.model_copy(update={"data": data})


def parse_config(values: dict[str, Any], path: str) -> Config:
    """Check a dictionary; ``path`` names its origin in the error."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [_explain(item) for item in error.errors(include_url=False)]
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise InputError(f"{path}: {lines[0]}{more}") from error


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a configuration's dictionary with each ``key.name=value`` put in its place."""
    values = copy.deepcopy(values)
    for override in overrides:
        _apply_override(values, override)
    return values


def dump_config(config: Config) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r} must look like key.name=value, as in train.steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"override {override!r}: {text!r} is no YAML value") from error
    *parents, last = key.split(".")
    here: Any = values
    for name in parents:
        here = _child(here, name, override)
    if isinstance(here, list):
        _child(here, last, override)
        here[int(last)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise InputError(f"override {override!r}: {'.'.join(parents)} holds no keys")


def _child(here: Any, name: str, override: str) -> Any:
    if isinstance(here, list):
        if not name.isdigit() or int(name) >= len(here):
            raise InputError(
                f"override {override!r}: {name!r} must be 0 to {len(here) - 1}, a place in the list"
            )
        return here[int(name)]
    if not isinstance(here, dict):
        raise InputError(f"override {override!r}: there are no keys below {name!r}")
    if here.get(name) is None:
        here[name] = {}
    return here[name]


def _explain(item: Any) -> str:
    # Union branches and the like add parts to the location that are no keys of the file.
    location = [
        str(part) for part in item["loc"] if not str(part).startswith(("list[", "function-", "constrained"))
    ]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        close = difflib.get_close_matches(location[-1], known, 1, 0.5)
        hint = (
            f"did you mean {'.'.join([*location[:-1], close[0]])}?"
            if close
            else f"known are {', '.join(known)}"
        )
        return f"unknown key {key}; {hint}"
    if item["type"] == "missing":
        return f"missing key {key}"
    message = item["msg"].removeprefix("Value error, ")
    shown = repr(item["input"])
    if not key or item["type"] == "value_error" or len(shown) > 80:
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]}, got {shown}"


def _keys_at(location: Sequence[str]) -> list[str]:
    """The known keys of the section at ``location``, list places included."""
    section: Any = Config
    for name in location:
        if name.isdigit():
            continue
        kind = section.model_fields[name].annotation
        options = [kind, *getattr(kind, "__args__", ())]
        section = next(o for o in options if isinstance(o, type) and issubclass(o, Section))
    return list(section.model_fields)
