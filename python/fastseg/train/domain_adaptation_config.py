# SPDX-License-Identifier: BSD-3-Clause
"""The section domain_adaptation of a configuration."""

from __future__ import annotations

from typing import Literal

from fastseg.train.section import Section
from fastseg.train.style_config import StyleConfig


class DomainAdaptationConfig(Section):
    strategy: Literal["style"] = "style"
    style: StyleConfig = StyleConfig()
