# SPDX-License-Identifier: BSD-3-Clause
"""Fused PyTorch ops and a lean training layer for segmenting microscopy volumes from few labels."""

from importlib.metadata import version as _version

from fastseg import nn
from fastseg._C import build_info
from fastseg.ops import (
    BCETerms,
    WindowEntropy,
    masked_weighted_bce,
    masked_weighted_bce_terms,
    patch_entropy,
)

__version__ = _version("fastseg")

__all__ = [
    "BCETerms",
    "WindowEntropy",
    "__version__",
    "build_info",
    "masked_weighted_bce",
    "masked_weighted_bce_terms",
    "nn",
    "patch_entropy",
]
