# SPDX-License-Identifier: BSD-3-Clause
"""The ops as modules: parameters and a call."""

from fastseg.nn.masked_bce import MaskedWeightedBCE
from fastseg.nn.masked_cross_entropy import MaskedCrossEntropy
from fastseg.nn.patch_contrast import PatchContrast, PatchContrastTerms
from fastseg.nn.patch_entropy import PatchSampler
from fastseg.nn.patch_nce import PatchNCE
from fastseg.nn.region_contrast import RegionContrast
from fastseg.nn.region_pool import RegionPool, SoftRegionPool
from fastseg.nn.region_pretext import RegionPretext, RegionPretextTerms, RegionView, grey_loss

__all__ = [
    "MaskedCrossEntropy",
    "MaskedWeightedBCE",
    "PatchContrast",
    "PatchContrastTerms",
    "PatchNCE",
    "PatchSampler",
    "RegionContrast",
    "RegionPool",
    "RegionPretext",
    "RegionPretextTerms",
    "RegionView",
    "SoftRegionPool",
    "grey_loss",
]
