# SPDX-License-Identifier: BSD-3-Clause
"""The ops as modules: parameters and a call."""

import torch
from torch import Tensor, nn

from fastseg.ops import SoftRegions, masked_weighted_bce, region_pool, soft_region_pool


class MaskedWeightedBCE(nn.Module):
    """`fastseg.masked_weighted_bce` with its options fixed; pos_weight (C,) is a buffer and moves along.

    pseudo_weight is a plain attribute and may be changed between steps, for example to ramp it up.
    """

    def __init__(
        self,
        *,
        pseudo_weight: float = 1.0,
        pos_weight: Tensor | list[float] | None = None,
        normalize: str = "voxels",
        reduction: str = "mean",
        impl: str = "auto",
    ):
        super().__init__()
        if pos_weight is not None and not isinstance(pos_weight, Tensor):
            pos_weight = torch.tensor(pos_weight, dtype=torch.float32)
        self.register_buffer("pos_weight", pos_weight)
        self.pseudo_weight = pseudo_weight
        self.normalize = normalize
        self.reduction = reduction
        self.impl = impl

    def forward(
        self, logits: Tensor, target: Tensor, mask: Tensor | None = None, weight: Tensor | None = None
    ) -> Tensor:
        return masked_weighted_bce(
            logits,
            target,
            mask,
            pseudo_weight=self.pseudo_weight,
            weight=weight,
            pos_weight=self.pos_weight,
            normalize=self.normalize,
            reduction=self.reduction,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        options = ("pseudo_weight", "normalize", "reduction", "impl")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in options)


class RegionPool(nn.Module):
    """`fastseg.region_pool` with its options fixed."""

    def __init__(self, num_regions: int, *, reduce: str = "mean", impl: str = "auto"):
        super().__init__()
        self.num_regions = num_regions
        self.reduce = reduce
        self.impl = impl

    def forward(self, features: Tensor, regions: Tensor) -> Tensor:
        return region_pool(features, regions, self.num_regions, reduce=self.reduce, impl=self.impl)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in ("num_regions", "reduce", "impl"))


class SoftRegionPool(nn.Module):
    """`fastseg.soft_region_pool` with its options fixed; by default the assignment is logits."""

    def __init__(self, *, from_logits: bool = True, variance: bool = False, impl: str = "auto"):
        super().__init__()
        self.from_logits = from_logits
        self.variance = variance
        self.impl = impl

    def forward(self, features: Tensor, assignment: Tensor, grey: Tensor | None = None) -> SoftRegions:
        options = {"from_logits": self.from_logits, "variance": self.variance, "impl": self.impl}
        return soft_region_pool(features, assignment, grey=grey, **options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in ("from_logits", "variance", "impl"))
