# SPDX-License-Identifier: BSD-3-Clause
"""The loss of patch contrast: windows drawn by their entropy, their masked images contrasted with one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastseg.ops import (
    PatchSamples,
    extract_patches,
    gather_rows,
    patch_entropy,
    region_contrast_rows,
    sample_patches,
)

Similarity = Literal["neg_mse", "bce", "features"]
SIMILARITIES: tuple[Similarity, ...] = ("neg_mse", "bce", "features")

# Tells the random numbers that choose anchors from those that choose windows.
_ANCHORS = 0x5851F42D4C957F2D

# log2(0) of a masked pixel that is wholly black or white.
_SMALLEST = 1e-6


class PatchContrastTerms(NamedTuple):
    """The loss with its parts. Only `loss` has a gradient; nothing has been read back from the device."""

    loss: Tensor  # intra + inter over channels; 0 where the step is void
    intra: Tensor  # (K,) L_intra of each channel
    inter: Tensor  # (K,) L_inter of each channel, 0 for K = 1
    positive_distance: Tensor  # (K,) D_pp: mean of -s between anchors and positives, 0 where there are none
    negative_distance: Tensor  # (K,) D_pn: mean of -s between anchors and negatives, likewise
    entropy: Tensor  # (K,) mean entropy in bits over all windows
    void: Tensor  # whether some channel has no positive or no negative
    samples: PatchSamples  # the windows, of this process's images


class PatchContrast(nn.Module):
    """The loss of Boserup & Selvan between windows of confidence maps.

    n windows are drawn for every image and channel, P(w) ~ max(1 - mean entropy of w, floor), each positive with the
    probability that is its mean confidence. P_k and N_k are the positives and negatives of channel k in the batch, and
    a window stands for its masked image C_k * image. With A anchors a_i from P_k, with replacement, and B images::

        L_intra,k = 1/(A^2 B) sum_i sum_{p in P_k} -log( e^s(a_i, p) / sum_{q in N_k} e^s(a_i, q) )
        L_inter,k = the same with the positives of all other channels in place of N_k
        loss      = sum_k L_intra,k + L_inter,k

    Args:
        patch_size, stride: of the windows in pixels, one number or one per axis.
        n: windows per image and channel.
        anchors: A, per channel.
        floor: what makes windows of an entropy of 1 bit possible.
        similarity: "neg_mse": s(u, v) = -mean((u - v)^2); "bce": mean(u log2 v + (1 - u) log2(1 - v)), for images in
            [0, 1]; "features": the cosine of what `featuriser` makes of the patches.
        featuriser: for "features": (N, 1, *patch_size), the mean over the image's channels, to (N, D).
        skip_void: a step in which some P_k or N_k is empty has loss 0, as in the paper. False: it lacks the terms of
            that channel alone.
        across_ranks: the batch is that of all processes together, this one's images being its share, the same number
            everywhere. Every process gets the whole loss; its gradient is summed over processes, to be averaged
            with the gradients of the parameters as DistributedDataParallel does.
        impl: of the ops, "auto", "fused" or "reference".

    Source: Boserup & Selvan 2023, "Efficient Self-Supervision using Patch-based Contrastive Learning for Nuclei
    Segmentation". Not theirs: more than two axes, skip_void=False, and which random numbers are drawn.
    """

    def __init__(
        self,
        patch_size: int | Sequence[int] = 50,
        stride: int | Sequence[int] = 20,
        n: int = 10,
        *,
        anchors: int = 10,
        floor: float = 1e-3,
        similarity: Similarity = "neg_mse",
        featuriser: nn.Module | None = None,
        skip_void: bool = True,
        across_ranks: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {similarity!r}")
        if (similarity == "features") != (featuriser is not None):
            raise ValueError(f'featuriser goes with similarity="features", got {similarity!r}')
        self.patch_size, self.stride, self.n, self.anchors = patch_size, stride, n, anchors
        self.floor, self.similarity, self.featuriser = floor, similarity, featuriser
        self.skip_void, self.across_ranks, self.impl = skip_void, across_ranks, impl

    def forward(self, confidence: Tensor, image: Tensor, seed: int | Tensor) -> PatchContrastTerms:
        """confidence (B, K, *S) in [0, 1], image (B, C, *S), both floating; seed: of this step's draws, the same in
        every process, as `sample_patches` takes it. No host synchronisation."""
        if image.shape[0] != confidence.shape[0] or image.shape[2:] != confidence.shape[2:]:
            raise ValueError(
                f"image must be (B, C, *S) with B and *S of confidence {tuple(confidence.shape)}, got "
                f"{tuple(image.shape)}"
            )
        samples, entropy = self._draw(confidence, seed)
        rows = self._gather(self._features(self._masked(confidence, image, samples.corners)))
        parity = self._gather(samples.parity)  # (B, K, n)
        images, channels = parity.shape[:2]
        channel = torch.arange(channels, device=rows.device)
        of_row = channel.view(1, -1, 1).expand_as(parity).reshape(-1)
        positive = parity.reshape(-1)
        found = torch.stack([parity.sum((0, 2)), (~parity).sum((0, 2))])
        void = (found == 0).any()

        chosen, exists = self._choose_anchors(parity, seed)
        of_anchor = channel.repeat_interleave(self.anchors)
        anchor_ids = torch.where(exists, of_anchor, -1)
        anchors, bank = self._as_pairs(rows.index_select(0, chosen), rows)

        def summed(
            bank_ids: Tensor, anchor_groups: Tensor | None = None, bank_groups: Tensor | None = None
        ) -> Tensor:
            found = region_contrast_rows(
                anchors,
                bank,
                anchor_ids=anchor_ids,
                bank_ids=bank_ids,
                anchor_groups=anchor_groups,
                bank_groups=bank_groups,
                temperature=1.0,
                similarity="neg_mse" if self.similarity == "neg_mse" else "dot",
                denominator="negatives",
                impl=self.impl,
            )
            each = (found.loss * found.positives).view(channels, self.anchors)
            return each.sum(1) / (self.anchors**2 * images)

        # Negatives of a channel bear an id of their own, and are seen by the anchors of their channel alone.
        intra = summed(torch.where(positive, of_row, channels), anchor_groups=of_anchor, bank_groups=of_row)
        inter = summed(torch.where(positive, of_row, -1)) if channels > 1 else torch.zeros_like(intra)
        loss = (intra + inter).sum()
        if self.skip_void:
            loss = torch.where(void, 0.0, loss)
        with torch.no_grad():
            distances = self._distances(anchors, bank, exists, of_row, positive, channels)
        return PatchContrastTerms(loss, intra.detach(), inter.detach(), *distances, entropy, void, samples)

    def _draw(self, confidence: Tensor, seed: int | Tensor) -> tuple[PatchSamples, Tensor]:
        """Windows of this process's images, and the mean entropy (K,) over all windows of all."""
        with torch.no_grad():
            found = patch_entropy(confidence, self.patch_size, self.stride, impl=self.impl)
            entropy, mean = self._gather(found.entropy), self._gather(found.confidence)
            # All processes draw for the whole batch, so that a window does not depend on how many there are.
            drawn = sample_patches(
                entropy,
                mean,
                self.n,
                seed=seed,
                stride=self.stride,
                floor=self.floor,
                impl=self.impl,
            )
            per_channel = entropy.transpose(0, 1).flatten(1).mean(1)
            if self.across_ranks:
                begin = torch.distributed.get_rank() * len(confidence)
                drawn = PatchSamples(*(part[begin : begin + len(confidence)] for part in drawn))
        return drawn, per_channel

    def _gather(self, rows: Tensor) -> Tensor:
        if not self.across_ranks:
            return rows
        return gather_rows(rows.byte()).bool() if rows.dtype == torch.bool else gather_rows(rows)

    def _masked(self, confidence: Tensor, image: Tensor, corners: Tensor) -> Tensor:
        """(B K n, C, *patch): the windows of C_k * image. Both are cut out before they are multiplied, so that the
        product of whole images is never made."""
        batch, channels, n, axes = corners.shape
        of_map = extract_patches(
            confidence.reshape(batch * channels, 1, *confidence.shape[2:]),
            corners.reshape(batch * channels, n, axes),
            self.patch_size,
            impl=self.impl,
        )
        of_image = extract_patches(image, corners, self.patch_size, impl=self.impl)
        masked = of_map.reshape(batch, channels, n, 1, *of_map.shape[3:]) * of_image
        return masked.flatten(0, 2)

    def _features(self, masked: Tensor) -> Tensor:
        if self.featuriser is None:
            return masked.flatten(1)
        features = self.featuriser(masked.mean(1, keepdim=True))
        return nn.functional.normalize(features.flatten(1), dim=1)

    def _as_pairs(self, anchors: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Anchors and bank whose neg_mse, or dot product, is the similarity."""
        if self.similarity != "bce":
            return anchors, rows
        # u . log2 v + (1 - u) . log2(1 - v) = u . (log2 v - log2(1 - v)) + 1 . sum log2(1 - v)
        size = rows.shape[1]
        rows = rows.clamp(_SMALLEST, 1 - _SMALLEST)
        black = (1 - rows).log2()
        bank = torch.cat([rows.log2() - black, black.sum(1, keepdim=True)], 1) / size
        return torch.cat([anchors, torch.ones_like(anchors[:, :1])], 1), bank

    def _choose_anchors(self, parity: Tensor, seed: int | Tensor) -> tuple[Tensor, Tensor]:
        """Rows (K A,) of anchors, drawn evenly from the positives of each channel, and whether there are any."""
        images, channels, n = parity.shape
        pool = parity.transpose(0, 1).reshape(1, channels, images * n)
        weight = pool.float()
        drawn = sample_patches(
            1 - weight, weight, self.anchors, seed=seed ^ _ANCHORS, floor=0.0, impl=self.impl
        )
        place = drawn.index[0].clamp(min=0)  # (K, A), in the pool of the channel
        channel = torch.arange(channels, device=parity.device).view(-1, 1)
        row = (place // n * channels + channel) * n + place % n
        return row.reshape(-1), (drawn.index[0] >= 0).reshape(-1)

    def _distances(
        self, anchors: Tensor, bank: Tensor, exists: Tensor, of_row: Tensor, positive: Tensor, channels: int
    ) -> tuple[Tensor, Tensor]:
        """The means of -s, from the means of the rows instead of all pairs: s is linear in them, or quadratic."""
        channel = torch.arange(channels, device=bank.device).view(-1, 1)
        wide = torch.float64 if bank.dtype == torch.float64 else torch.float32
        kind = torch.stack([(of_row == channel) & positive, (of_row == channel) & ~positive]).to(wide)
        kind = kind / kind.sum(-1, keepdim=True).clamp(min=1)  # (2, K, rows), each a mean or 0
        seen = kind.sum(-1) * exists.view(channels, -1).any(1)
        bank, anchors = bank.to(wide), anchors.to(wide)
        means = kind @ bank  # (2, K, D)
        anchor = anchors.view(channels, self.anchors, -1)
        distance = -(anchor.mean(1) * means).sum(-1)
        if self.similarity == "neg_mse":
            squares = kind @ bank.square().mean(1)  # (2, K)
            distance = anchor.square().mean((1, 2)) + squares + 2 * distance / bank.shape[1]
        distance = torch.where(seen > 0, distance, 0.0)
        return distance[0], distance[1]
