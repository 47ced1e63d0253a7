# SPDX-License-Identifier: BSD-3-Clause
"""What a method is to all that names none: the configuration, ``fastseg check``, training and prediction."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar

from torch import nn

from fastseg.data.annotations import AnnotatedVolume
from fastseg.train.checkpoint import RunFolder
from fastseg.train.config import Config
from fastseg.train.ranks import Ranks
from fastseg.train.section import Section


class Method:
    """A method: its section of a configuration, the rules there, and its training.

    A method is a package ``fastseg.methods.<name>``. Its module ``method`` holds the one object of this class,
    ``METHOD``, and loads quickly; its module ``training`` is loaded when something is trained or predicted. A line in
    registry.py makes the method known.
    """

    name: str  # as the key ``method`` names it

    # The section of the configuration that bears the method's name, if it has one; every key has a default.
    section: type[Section] | None = None

    # That section in the commented file that ``fastseg init`` writes.
    template: str = ""

    # Keys of the other sections whose defaults differ under this method.
    defaults: ClassVar[dict[str, Any]] = {}

    # False: it segments without any labels, and begins at random.
    learns_labels: bool = True

    def check(self, config: Config) -> None:
        """ValueError for what cannot go together in a configuration of this method."""

    def segments(self, config: Config) -> bool:
        """Whether the run's network segments; that of a pretraining does not."""
        return True

    def describe(self, config: Config, volumes: Sequence[AnnotatedVolume]) -> list[str]:
        """Lines of ``fastseg check`` on what this method alone does with the training volumes."""
        return []

    def train(self, config: Config, *, resume: bool, quiet: bool) -> RunFolder:
        """Train into the folder ``config.output``, with the processes that torchrun or the like started. What is left
        there is a run of the network that ``build_network`` makes."""
        return self.training.train(config, resume=resume, quiet=quiet)

    def prepare(self, config: Config, ranks: Ranks) -> tuple[Config, list[AnnotatedVolume], Any]:
        """What ``train`` would train with, without training: the configuration with all it implies, the training
        volumes, and the task, which also has the ``loader`` and the ``indexes`` of the volumes' labels."""
        return self.training.prepare(config, ranks)

    def build_network(self, config: Config, channels: int) -> nn.Module:
        """The network of a run, from raw windows of so many channels to the logits of its segmentation."""
        return self.training.build_network(config, channels)

    @property
    def training(self) -> ModuleType:
        return importlib.import_module(f"{type(self).__module__.rpartition('.')[0]}.training")
