# SPDX-License-Identifier: BSD-3-Clause
"""Patch entropy sampling as a module."""

from collections.abc import Sequence

from torch import Tensor, nn

from fastseg.ops import PatchSamples, WindowEntropy, patch_entropy, sample_patches


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
        options = ["patch_size", "stride", "n", "mode", "from_logits", "min_valid", "strategy"]
        options += ["replacement", "floor", "threshold", "impl"]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in options)
