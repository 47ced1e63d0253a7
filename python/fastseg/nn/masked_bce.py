# SPDX-License-Identifier: BSD-3-Clause
"""The masked weighted BCE as a loss module."""

import functools

import torch
from torch import Tensor, nn

from fastseg.ops import masked_weighted_bce, masked_weighted_bce_across_ranks


class MaskedWeightedBCE(nn.Module):
    """`fastseg.masked_weighted_bce` with its options fixed; pos_weight (C,) is a buffer and moves along.

    pseudo_weight is a plain attribute and may be changed between steps, for example to ramp it up.
    across_ranks: the batch is shared out over the processes of torch.distributed, and the mean is over all of
    it; needs reduction="mean". See `fastseg.masked_weighted_bce_across_ranks`.
    """

    pos_weight: Tensor | None

    def __init__(
        self,
        *,
        pseudo_weight: float = 1.0,
        pos_weight: Tensor | list[float] | None = None,
        normalize: str = "voxels",
        reduction: str = "mean",
        impl: str = "auto",
        across_ranks: bool = False,
    ):
        super().__init__()
        if across_ranks and reduction != "mean":
            raise ValueError(f'across_ranks needs reduction="mean", got {reduction!r}')
        if pos_weight is not None and not isinstance(pos_weight, Tensor):
            pos_weight = torch.tensor(pos_weight, dtype=torch.float32)
        self.register_buffer("pos_weight", pos_weight)
        self.pseudo_weight = pseudo_weight
        self.normalize = normalize
        self.reduction = reduction
        self.impl = impl
        self.across_ranks = across_ranks

    def forward(
        self, logits: Tensor, target: Tensor, mask: Tensor | None = None, weight: Tensor | None = None
    ) -> Tensor:
        if self.across_ranks:
            loss = masked_weighted_bce_across_ranks
        else:
            loss = functools.partial(masked_weighted_bce, reduction=self.reduction)
        return loss(
            logits,
            target,
            mask,
            pseudo_weight=self.pseudo_weight,
            weight=weight,
            pos_weight=self.pos_weight,
            normalize=self.normalize,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        options = ("pseudo_weight", "normalize", "reduction", "impl", "across_ranks")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in options)
