# SPDX-License-Identifier: BSD-3-Clause
"""Volumes of any size, and patches of them for training."""

from fastseg.data.annotations import AnnotatedVolume, Annotation
from fastseg.data.volumes import Volume, open_volume

__all__ = ["AnnotatedVolume", "Annotation", "Volume", "open_volume"]
