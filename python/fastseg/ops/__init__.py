# SPDX-License-Identifier: BSD-3-Clause
"""The fused ops. Each has a kernel per device and a definition in plain PyTorch (fastseg.ops.reference)."""

from fastseg.ops.masked_bce import BCETerms, masked_weighted_bce, masked_weighted_bce_terms
from fastseg.ops.masked_bce_across_ranks import masked_weighted_bce_across_ranks
from fastseg.ops.region_contrast import ContrastRows, region_contrast, region_contrast_rows
from fastseg.ops.region_contrast_sharded import gather_rows, sharded_region_contrast

__all__ = [
    "BCETerms",
    "ContrastRows",
    "gather_rows",
    "masked_weighted_bce",
    "masked_weighted_bce_across_ranks",
    "masked_weighted_bce_terms",
    "region_contrast",
    "region_contrast_rows",
    "sharded_region_contrast",
]
