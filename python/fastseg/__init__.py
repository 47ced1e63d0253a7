# SPDX-License-Identifier: BSD-3-Clause
"""Fused PyTorch ops and a lean training layer for segmenting microscopy volumes from few labels."""

from importlib.metadata import version as _version

from fastseg import nn
from fastseg._C import build_info
from fastseg.ops import (
    BCETerms,
    PatchSamples,
    WindowEntropy,
    extract_patches,
    masked_weighted_bce,
    masked_weighted_bce_terms,
    patch_entropy,
    sample_patches,
)

__version__ = _version("fastseg")

__all__ = [
    "BCETerms",
    "PatchSamples",
    "WindowEntropy",
    "__version__",
    "build_info",
    "extract_patches",
    "masked_weighted_bce",
    "masked_weighted_bce_terms",
    "nn",
    "patch_entropy",
    "sample_patches",
]
