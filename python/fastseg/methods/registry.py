# SPDX-License-Identifier: BSD-3-Clause
"""The method that a configuration names: its training, and its network.

A method is a module of its name in this package with the two functions of this file. What ``train`` leaves in the
folder is a run of the network that ``build_network`` makes of the configuration.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from torch import nn

from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import Config


def train(config: Config, *, resume: bool = False, quiet: bool = False) -> RunFolder:
    """Train by ``config.method`` into the folder ``config.output``, with the processes that torchrun or the like
    started."""
    return _method(config).train(config, resume=resume, quiet=quiet)


def build_network(config: Config, channels: int) -> nn.Module:
    """The network of a run, from raw windows of so many channels to the logits of its segmentation."""
    return _method(config).build_network(config, channels)


def _method(config: Config) -> ModuleType:
    return importlib.import_module(f"fastseg.methods.{config.method}")
