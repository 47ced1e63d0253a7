# SPDX-License-Identifier: BSD-3-Clause
"""The pairwise region contrast as a loss module."""

import math

import torch
from torch import Tensor, nn

from fastseg.ops.region_contrast import region_contrast


class RegionContrast(nn.Module):
    """`fastseg.region_contrast` with its options fixed; with learn_temperature its logarithm is a parameter."""

    log_temperature: nn.Parameter | None

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        learn_temperature: bool = False,
        similarity: str = "cosine",
        denominator: str = "all",
        reduction: str = "mean",
        impl: str = "auto",
    ):
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be finite and above 0, got {temperature}")
        self.log_temperature = (
            nn.Parameter(torch.tensor(math.log(temperature))) if learn_temperature else None
        )
        self.fixed_temperature = float(temperature)
        self.similarity = similarity
        self.denominator = denominator
        self.reduction = reduction
        self.impl = impl

    @property
    def temperature(self) -> float | Tensor:
        return self.fixed_temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(
        self,
        anchors: Tensor,
        anchor_ids: Tensor,
        bank: Tensor | None = None,
        bank_ids: Tensor | None = None,
        anchor_groups: Tensor | None = None,
        bank_groups: Tensor | None = None,
    ) -> Tensor:
        return region_contrast(
            anchors,
            bank,
            anchor_ids=anchor_ids,
            bank_ids=bank_ids,
            anchor_groups=anchor_groups,
            bank_groups=bank_groups,
            temperature=self.temperature,
            similarity=self.similarity,
            denominator=self.denominator,
            reduction=self.reduction,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        options = ("similarity", "denominator", "reduction", "impl")
        learnt = "" if self.log_temperature is None else " at first, learnt"
        described = [f"{name}={getattr(self, name)!r}" for name in options]
        return ", ".join([f"temperature={self.fixed_temperature!r}{learnt}", *described])
