# SPDX-License-Identifier: BSD-3-Clause
"""Region pooling as modules."""

from torch import Tensor, nn

from fastseg.ops import SoftRegions, region_pool, soft_region_pool


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
        return soft_region_pool(
            features,
            assignment,
            grey=grey,
            from_logits=self.from_logits,
            variance=self.variance,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in ("from_logits", "variance", "impl"))
