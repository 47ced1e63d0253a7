# SPDX-License-Identifier: BSD-3-Clause
"""The loss of region contrast pretraining: what two views of an image say of its regions."""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastseg.ops import region_pool, remembering_region_contrast, sharded_region_contrast, soft_region_pool

Negatives = Literal["batch", "image"]
NEGATIVES: tuple[Negatives, ...] = ("batch", "image")


class RegionView(NamedTuple):
    """A view of a batch, the geometry of both views undone: voxels may be in any order, as long as they are those of
    the same places in both.

    regions: (B, K, *S) floating, logits whose softmax over K shares out each voxel; or (B, *S) integer, ids from 0 to
    K - 1, others being no region. embedding: (B, D, *S). grey: (B, 1, *S) in [0, 1].
    """

    regions: Tensor
    embedding: Tensor | None = None
    grey: Tensor | None = None


class RegionPretextTerms(NamedTuple):
    """The loss with its parts. Only `loss` has a gradient; nothing has been read back from the device."""

    loss: Tensor
    semantic: Tensor  # L_sem, of all processes' regions where they share a batch
    within: Tensor  # L_in, the mean of both views
    between: Tensor  # L_out, likewise
    share: Tensor  # (2, B, K): what part of the voxels each region has
    used: Tensor  # (B, K): whether a region is there in both views
    vectors: Tensor | None  # (2, B, K, D) unit vectors v_k, 0 where a region's mean is


def grey_loss(
    mass: Tensor, mean: Tensor, variance: Tensor, *, margin: float = 0.2, least_share: float = 0.0
) -> tuple[Tensor, Tensor]:
    """L_in and L_out of soft regions, the mean over images and the sum over grey channels.

    With S the mass (B, K), g the mean and V the variance (B, K, C) as `soft_region_pool` gives them, HW the voxels::

        L_in  = 1/HW sum_k S_k V_k                         (the image's variance less that between regions)
        L_out = 1/(K(K-1)) sum_{i != j} max(0, margin - |g_i - g_j|)^2

    Edge rules: a region of no more than `least_share` of the voxels takes no part in L_out; one of mass 0 has no part
    in either, and no gradient. K = 1: L_out is 0.

    Source: USRegCon's grey loss, after the Mumford-Shah functional.
    """
    total = mass.sum(1, keepdim=True)
    within = ((mass / total).unsqueeze(-1) * variance).sum((1, 2)).mean()
    regions = mass.shape[1]
    if regions == 1:
        return within, torch.zeros_like(within)
    there = mass > least_share * total
    apart = (mean.unsqueeze(2) - mean.unsqueeze(1)).abs()  # (B, K, K, C)
    short = (margin - apart).clamp(min=0).square().sum(-1)
    pairs = there.unsqueeze(2) & there.unsqueeze(1)
    pairs = pairs & ~torch.eye(regions, dtype=torch.bool, device=mass.device)
    between = torch.where(pairs, short, 0.0).sum((1, 2)) / (regions * (regions - 1))
    return within, between.mean()


class RegionPretext(nn.Module):
    """L = semantic_weight L_sem + grey_weight (L_in + beta L_out) between two views of a batch, in one pass each.

    L_sem is InfoNCE between unit vectors v_k of mean embeddings, symmetric in the views: region k of an image in one
    view and in the other are each other's positive; all other regions of both views, of the image or of the whole
    batch, are negatives. Regions that are not there in both views take no part. L_in and L_out are `grey_loss`, the
    mean of the views; given regions have none, for nothing in them can be learnt.

    Args:
        temperature: of L_sem, on cosines.
        beta, margin: of the grey loss.
        semantic_weight, grey_weight: 0 leaves a term out, and what it needs need not be given.
        negatives: "batch", or "image" for those of the same image alone.
        least_share: the part of the voxels that makes a region be there.
        across_ranks: the batch is that of all processes, this one's images being its share, the same number
            everywhere. The average of their losses, and of their gradients, is that of one process with the batch.
        impl: of the ops, "auto", "fused" or "reference".

    Shapes, dtypes: see `RegionView`; the loss is float32, or float64 where an argument is.

    Edge rules: where no region is used L_sem is 0. Equal v everywhere give L_sem = log(1 + number of negatives).

    Raises: ValueError for options and for views that do not fit each other.

    Cost: each view's embedding and logits are read once forward and once backward; O(B K D) beside them.

    Source: USRegCon (J South Med Univ 2023;43(5):815-824); formulas after its relatives, see
    docs/methods/region_contrast.md.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.2,
        beta: float = 1.0,
        margin: float = 0.2,
        semantic_weight: float = 1.0,
        grey_weight: float = 1.0,
        negatives: Negatives = "batch",
        least_share: float = 1e-3,
        across_ranks: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        if negatives not in NEGATIVES:
            raise ValueError(f"negatives must be one of {', '.join(NEGATIVES)}, got {negatives!r}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be finite and above 0, got {temperature}")
        if min(semantic_weight, grey_weight, beta, margin) < 0 or semantic_weight + grey_weight == 0:
            raise ValueError(
                "semantic_weight, grey_weight, beta and margin must be at least 0 and one of the weights above, got "
                f"{semantic_weight}, {grey_weight}, {beta}, {margin}"
            )
        self.temperature, self.beta, self.margin = temperature, beta, margin
        self.semantic_weight, self.grey_weight = semantic_weight, grey_weight
        self.negatives, self.least_share = negatives, least_share
        self.across_ranks, self.impl = across_ranks, impl

    def forward(
        self,
        first: RegionView,
        second: RegionView,
        *,
        num_regions: int | None = None,
        memory: Tensor | None = None,
        memory_ids: Tensor | None = None,
    ) -> RegionPretextTerms:
        """num_regions: K, for given regions. memory (Q, D) and memory_ids (Q,): further negatives, such as the regions
        of earlier steps; id -1 for none, any other for one. They go with negatives="batch"."""
        if memory is not None and self.negatives != "batch":
            raise ValueError('memory goes with negatives="batch"')
        pooled = [self._pool(view, num_regions) for view in (first, second)]
        share = torch.stack([mass / mass.sum(1, keepdim=True).clamp(min=1e-30) for mass, _, _, _ in pooled])
        used = (share > self.least_share).all(0)
        means = [mean for _, mean, _, _ in pooled if mean is not None]
        semantic = within = between = share.new_zeros(())
        vectors = None
        if means:
            vectors = nn.functional.normalize(torch.stack(means), dim=-1)
            semantic = self._contrast(vectors, used, memory, memory_ids)
        greys = [
            grey_loss(mass, grey, spread, margin=self.margin, least_share=self.least_share)
            for mass, _, grey, spread in pooled
            if grey is not None and spread is not None
        ]
        if greys:
            within, between = (torch.stack(part).mean() for part in zip(*greys, strict=True))
        loss = self.semantic_weight * semantic + self.grey_weight * (within + self.beta * between)
        return RegionPretextTerms(
            loss,
            semantic.detach(),
            within.detach(),
            between.detach(),
            share.detach(),
            used,
            None if vectors is None else vectors.detach(),
        )

    def _pool(
        self, view: RegionView, num_regions: int | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Mass (B, K), mean embedding (B, K, D), grey mean and variance (B, K, 1) of the regions of a view."""
        embedding = view.embedding if self.semantic_weight else None
        if not view.regions.is_floating_point():
            if num_regions is None or embedding is None:
                raise ValueError("given regions need num_regions, an embedding and a semantic_weight above 0")
            one = embedding.new_ones((), dtype=torch.float32).expand(len(embedding), 1, *embedding.shape[2:])
            mass = region_pool(one, view.regions, num_regions, reduce="sum", impl=self.impl).squeeze(-1)
            mean = region_pool(embedding, view.regions, num_regions, impl=self.impl)
            return mass.to(mean.dtype), mean, None, None
        grey = view.grey if self.grey_weight else None
        if (embedding is None) != (self.semantic_weight == 0) or (grey is None) != (self.grey_weight == 0):
            raise ValueError(
                "a view needs an embedding for L_sem and a grey image for L_grey, unless their weight is 0"
            )
        pool = functools.partial(soft_region_pool, from_logits=True, impl=self.impl)
        if embedding is None:
            assert grey is not None
            found = pool(grey, view.regions, variance=True)
            return found.mass, None, found.mean, found.variance
        found = pool(embedding, view.regions, grey=grey)
        return found.mass, found.mean, found.grey_mean, found.grey_variance

    def _contrast(
        self, vectors: Tensor, used: Tensor, memory: Tensor | None, memory_ids: Tensor | None
    ) -> Tensor:
        """L_sem of (2, B, K, D) unit vectors."""
        images, regions = used.shape
        first = torch.distributed.get_rank() * images if self.across_ranks else 0
        image = torch.arange(first, first + images, device=used.device).unsqueeze(1)
        ids = torch.where(used, image * regions + torch.arange(regions, device=used.device), -1)
        if memory_ids is not None:
            # No id of a region of this batch, of whatever process.
            memory_ids = torch.where(memory_ids < 0, -1, torch.iinfo(ids.dtype).max)
        groups = image.expand(images, regions) if self.negatives == "image" else None
        contrast = sharded_region_contrast if self.across_ranks else remembering_region_contrast
        return contrast(
            vectors.flatten(0, 2),
            anchor_ids=ids.repeat(2, 1).flatten(),
            anchor_groups=None if groups is None else groups.repeat(2, 1).flatten(),
            memory=memory,
            memory_ids=memory_ids,
            temperature=self.temperature,
            similarity="dot",
            impl=self.impl,
        )
