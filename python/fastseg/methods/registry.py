# SPDX-License-Identifier: BSD-3-Clause
"""The method that a configuration names: its training, and its network.

A method is a module of its name in this package with the functions of this file. What ``train`` leaves in the
folder is a run of the network that ``build_network`` makes of the configuration.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from torch import nn

from fastseg.data.annotations import AnnotatedVolume
from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import Config
from fastseg.train.folders import each_file_apart
from fastseg.train.ranks import Ranks


def train(config: Config, *, resume: bool = False, quiet: bool = False) -> RunFolder:
    """Train by ``config.method`` into the folder ``config.output``, with the processes that torchrun or the like
    started."""
    return _method(config).train(each_file_apart(config), resume=resume, quiet=quiet)


def prepare(config: Config, ranks: Ranks) -> tuple[Config, list[AnnotatedVolume], Any]:
    """What ``train`` would train with, without training: the configuration with all it implies, the training volumes,
    and the task, which also has the ``loader`` and the ``indexes`` of the volumes' labels."""
    return _method(config).prepare(each_file_apart(config), ranks)


def build_network(config: Config, channels: int) -> nn.Module:
    """The network of a run, from raw windows of so many channels to the logits of its segmentation."""
    return _method(config).build_network(config, channels)


def _method(config: Config) -> ModuleType:
    return importlib.import_module(f"fastseg.methods.{config.method}")
