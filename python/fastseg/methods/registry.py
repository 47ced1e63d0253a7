# SPDX-License-Identifier: BSD-3-Clause
"""Training by the method that a configuration names."""

from __future__ import annotations

import importlib

from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import Config


def train(config: Config, *, resume: bool = False, quiet: bool = False) -> RunFolder:
    """Train by ``config.method`` into the folder ``config.output``, with the processes that torchrun or the like
    started.

    A method is a module of its name in this package with a function of this signature. What it leaves in the folder
    is a run of the network that ``build_network`` makes of the configuration.
    """
    method = importlib.import_module(f"fastseg.methods.{config.method}")
    return method.train(config, resume=resume, quiet=quiet)
