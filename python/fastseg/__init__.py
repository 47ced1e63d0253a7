# SPDX-License-Identifier: BSD-3-Clause
"""Fused PyTorch ops and a lean training layer for segmenting microscopy volumes from few labels."""

from importlib.metadata import version as _version

from fastseg import nn
from fastseg._C import build_info
from fastseg.ops import (
    BCETerms,
    ContrastRows,
    gather_rows,
    masked_weighted_bce,
    masked_weighted_bce_terms,
    region_contrast,
    region_contrast_rows,
    sharded_region_contrast,
)

__version__ = _version("fastseg")

__all__ = [
    "BCETerms",
    "ContrastRows",
    "__version__",
    "build_info",
    "gather_rows",
    "masked_weighted_bce",
    "masked_weighted_bce_terms",
    "nn",
    "region_contrast",
    "region_contrast_rows",
    "sharded_region_contrast",
]
