# SPDX-License-Identifier: BSD-3-Clause
"""What the method supervised is to a configuration: nothing but the sections that all have."""

from __future__ import annotations

from fastseg.methods.base import Method


class Supervised(Method):
    name = "supervised"


METHOD = Supervised()
