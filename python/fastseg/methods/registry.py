# SPDX-License-Identifier: BSD-3-Clause
"""All methods by name, and what is asked of the one that a configuration names."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from fastseg.data.annotations import AnnotatedVolume
from fastseg.methods.base import Method
from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import Config
from fastseg.train.folders import each_file_apart
from fastseg.train.ranks import Ranks

# Packages of this folder; the first one is the method of a configuration that names none.
_PACKAGES = (
    "supervised",
    "sparse_2d3d",
    "patch_contrast",
    "region_contrast",
    "domain_adaptation",
)

METHODS: dict[str, Method] = {
    name: importlib.import_module(f"fastseg.methods.{name}.method").METHOD for name in _PACKAGES
}


def method_of(config: Config) -> Method:
    return METHODS[config.method]


def train(config: Config, *, resume: bool = False, quiet: bool = False) -> RunFolder:
    """See ``Method.train``."""
    return method_of(config).train(each_file_apart(config), resume=resume, quiet=quiet)


def prepare(config: Config, ranks: Ranks) -> tuple[Config, list[AnnotatedVolume], Any]:
    """See ``Method.prepare``."""
    return method_of(config).prepare(each_file_apart(config), ranks)


def build_network(config: Config, channels: int) -> nn.Module:
    """See ``Method.build_network``."""
    return method_of(config).build_network(config, channels)
