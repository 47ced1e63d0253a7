# SPDX-License-Identifier: BSD-3-Clause
"""Fused PyTorch ops and a lean training layer for segmenting microscopy volumes from few labels."""

from importlib.metadata import version as _version

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise  # torch is there, and lacks something itself
    raise ModuleNotFoundError(
        "fastseg needs torch >= 2.11, which is not installed here: install the build for your machine, such as "
        "pip install torch (see pytorch.org/get-started)",
        name="torch",
    ) from None

from fastseg import nn

# From their own modules: some have the name of an op, and a type checker would take fastseg.ops.<op> for the module.
from fastseg.ops.dispatch import build_info
from fastseg.ops.masked_bce import BCETerms, masked_weighted_bce, masked_weighted_bce_terms
from fastseg.ops.masked_bce_across_ranks import masked_weighted_bce_across_ranks
from fastseg.ops.patch_entropy import WindowEntropy, patch_entropy
from fastseg.ops.patch_entropy_crops import extract_patches
from fastseg.ops.patch_entropy_sampling import PatchSamples, sample_patches
from fastseg.ops.region_contrast import ContrastRows, region_contrast, region_contrast_rows
from fastseg.ops.region_contrast_sharded import gather_rows, sharded_region_contrast
from fastseg.ops.region_pool import RegionStats, region_pool, region_stats
from fastseg.ops.region_pool_soft import SoftRegions, soft_region_pool

__version__ = _version("fastseg")

__all__ = [
    "BCETerms",
    "ContrastRows",
    "PatchSamples",
    "RegionStats",
    "SoftRegions",
    "WindowEntropy",
    "__version__",
    "build_info",
    "extract_patches",
    "gather_rows",
    "masked_weighted_bce",
    "masked_weighted_bce_across_ranks",
    "masked_weighted_bce_terms",
    "nn",
    "patch_entropy",
    "region_contrast",
    "region_contrast_rows",
    "region_pool",
    "region_stats",
    "sample_patches",
    "sharded_region_contrast",
    "soft_region_pool",
]
