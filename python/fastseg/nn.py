# SPDX-License-Identifier: BSD-3-Clause
"""The ops as modules: parameters and a call."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastseg.ops import PatchSamples, WindowEntropy, masked_weighted_bce, patch_entropy, sample_patches


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


class PatchSampler(nn.Module):
    """`fastseg.patch_entropy` and `fastseg.sample_patches` with their options fixed: from a confidence map to
    the windows drawn in it. `scores` gives the entropies and confidences alone, with their gradient.
    """

    def __init__(
        self,
        patch_size: int | Sequence[int],
        stride: int | Sequence[int],
        n: int = 10,
        *,
        mode: str = "binary",
        from_logits: bool = False,
        min_valid: float = 0.5,
        strategy: str = "probabilistic",
        replacement: bool = True,
        floor: float = 1e-3,
        threshold: float | None = None,
        impl: str = "auto",
    ):
        super().__init__()
        self.patch_size = patch_size
        self.stride = stride
        self.n = n
        self.mode = mode
        self.from_logits = from_logits
        self.min_valid = min_valid
        self.strategy = strategy
        self.replacement = replacement
        self.floor = floor
        self.threshold = threshold
        self.impl = impl

    def scores(self, confidence: Tensor, mask: Tensor | None = None) -> WindowEntropy:
        return patch_entropy(
            confidence,
            self.patch_size,
            self.stride,
            mode=self.mode,
            from_logits=self.from_logits,
            mask=mask,
            min_valid=self.min_valid,
            impl=self.impl,
        )

    def forward(self, confidence: Tensor, seed: int | Tensor, mask: Tensor | None = None) -> PatchSamples:
        return sample_patches(
            *self.scores(confidence.detach(), mask),
            self.n,
            seed=seed,
            stride=self.stride,
            strategy=self.strategy,
            replacement=self.replacement,
            floor=self.floor,
            threshold=self.threshold,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        options = ("patch_size", "stride", "n", "mode", "from_logits", "min_valid", "strategy")
        options += ("replacement", "floor", "threshold", "impl")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in options)
