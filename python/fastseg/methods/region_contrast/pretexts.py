# SPDX-License-Identifier: BSD-3-Clause
"""The pretext tasks of pretraining: the loss of a batch of views, and the vectors that are told apart."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastseg.data.buffers import Batch
from fastseg.data.views import View
from fastseg.errors import InputError
from fastseg.methods.region_contrast.config import RegionContrastConfig
from fastseg.methods.region_contrast.network import ImageNetwork, MaskedNetwork, PretextNetwork, RegionNetwork
from fastseg.nn import RegionPretext, RegionView
from fastseg.ops import remembering_region_contrast, sharded_region_contrast
from fastseg.train.config import Config
from fastseg.train.ranks import Ranks

# Tells the random numbers of hidden blocks from others of the same seed, step and place.
_MASK = 11


class Outcome(NamedTuple):
    """loss, with a gradient; scalars to log; and of what is told apart, regions or images: the part of the voxels that
    each has (2, B, K), which are there (B, K) and their unit vectors (2, B, K, D), None where there are none."""

    loss: Tensor
    scalars: dict[str, Tensor]
    share: Tensor | None = None
    used: Tensor | None = None
    vectors: Tensor | None = None
    maps: Tensor | None = None  # (2, B, K, z, y, x) logits of the regions, in the views
    image: Tensor | None = None  # (B, C, z, y, x) that was put in place of the first view
    restored: Tensor | None = None


class Pretext:
    """A pretext task: its network, and the outcome of two views."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.config, self.settings, self.ranks = config, config.section(RegionContrastConfig), ranks

    def outcome(self, network: PretextNetwork, views: tuple[View, View], batch: Batch) -> Outcome:
        raise NotImplementedError

    def remember(self, network: PretextNetwork, outcome: Outcome) -> None:
        """Keep the first view's vectors as negatives of later steps, where there is a memory."""
        memory = getattr(network, "memory", None)
        if memory is not None and outcome.vectors is not None and outcome.used is not None:
            vectors = outcome.vectors[0].flatten(0, -2)
            memory.add(vectors, outcome.used.flatten(), across_ranks=self.ranks.count > 1)


class RegionsPretext(Pretext):
    """Regions of two views, by an assignment that is learnt or given: see ``RegionPretext``."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        super().__init__(config, ranks)
        settings = config.section(RegionContrastConfig)
        self.criterion = RegionPretext(
            temperature=settings.temperature,
            beta=settings.beta,
            margin=settings.margin,
            semantic_weight=settings.semantic_weight,
            grey_weight=0.0 if settings.given else settings.grey_weight,
            negatives=settings.negatives,
            least_share=settings.least_share,
            across_ranks=ranks.count > 1,
        )

    def outcome(self, network: PretextNetwork, views: tuple[View, View], batch: Batch) -> Outcome:
        assert isinstance(network, RegionNetwork)
        embedding, assignment = network(torch.cat([view.image for view in views]))
        count = len(batch.raw)
        halves = [slice(0, count), slice(count, None)]
        regions = self._regions(views, assignment, halves)
        parts = []
        for view, ids, mine in zip(views, regions, halves, strict=True):
            grey = (
                view.shared(view.clean.mean(1, keepdim=True).clamp(0, 1)) if assignment is not None else None
            )
            parts.append(RegionView(ids, None if embedding is None else view.shared(embedding[mine]), grey))
        memory = network.memory
        with torch.autocast(batch.raw.device.type, enabled=False):
            terms = self.criterion(
                *parts,
                num_regions=self.settings.regions,
                memory=None if memory is None else memory.rows,
                memory_ids=None if memory is None else memory.ids,
            )
        scalars = {"used": terms.used.sum(1).float().mean()}
        if self.criterion.semantic_weight:
            scalars["semantic"] = terms.semantic
        if self.criterion.grey_weight:
            scalars |= {"within": terms.within, "between": terms.between}
        maps = None if assignment is None else assignment.detach().unflatten(0, (2, count))
        return Outcome(terms.loss, scalars, terms.share, terms.used, terms.vectors, maps)

    def _regions(
        self, views: tuple[View, View], assignment: Tensor | None, halves: list[slice]
    ) -> list[Tensor]:
        """The regions of what both views share: given ids, or logits of both views' assignments.

        With ``assignment: shared`` they are the mean of both. A network can tell where a voxel lies in its own pattern
        of upsampling and from the border; regions of every other voxel would be there in any view and say nothing.
        Turned back, these patterns disagree, and only what is seen in both remains.
        """
        if assignment is None:
            return _numbered(views, self.settings.regions)
        logits = [view.shared(assignment[mine]) for view, mine in zip(views, halves, strict=True)]
        if self.settings.assignment == "own":
            return logits
        return [(logits[0] + logits[1]) / 2] * 2


class MaskedPretext(Pretext):
    """Blocks of the first view are hidden, ``mask_share`` of all; the loss is the mean squared error in them."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        super().__init__(config, ranks)
        size = self.settings.mask_size
        self.box = list(size) if isinstance(size, list) else [size] * len(config.data.patch)
        if len(self.box) != len(config.data.patch):
            raise InputError(
                f"region_contrast.mask_size must be one number or {len(config.data.patch)}, one per axis of "
                f"data.patch, got {size}"
            )
        if len(self.box) == 2:
            self.box.insert(config.slice_axis, 1)
        self.blocks = [-(-n // b) for n, b in zip(config.patch, self.box, strict=True)]
        if math.prod(self.blocks) < 2:
            raise InputError(
                f"region_contrast.mask_size {size} must leave something of data.patch {config.data.patch} to see"
            )

    def outcome(self, network: PretextNetwork, views: tuple[View, View], batch: Batch) -> Outcome:
        assert isinstance(network, MaskedNetwork)
        image = views[0].image
        hidden = self._draw(batch, image)
        # The mean of what is left says nothing of what is hidden.
        kept = (image * ~hidden).sum((2, 3, 4), keepdim=True) / (~hidden).sum((2, 3, 4), keepdim=True)
        shown = torch.where(hidden, kept, image)
        restored = network(shown)
        squares = (restored.float() - image).square().mean(1, keepdim=True)
        each = (squares * hidden).sum((1, 2, 3, 4)) / hidden.sum((1, 2, 3, 4))
        return Outcome(each.mean(), {}, image=shown.detach(), restored=restored.detach())

    def _draw(self, batch: Batch, image: Tensor) -> Tensor:
        """(B, 1, z, y, x): whether a voxel is hidden; the same number of blocks in each sample."""
        total = math.prod(self.blocks)
        count = min(max(round(self.settings.mask_share * total), 1), total - 1)
        drawn = np.zeros((len(image), total), bool)
        for row, place in zip(drawn, batch.places, strict=True):
            rng = np.random.default_rng((self.config.seed, batch.step, place, _MASK))
            row[rng.permutation(total)[:count]] = True
        hidden = torch.from_numpy(drawn).view(len(image), 1, *self.blocks)
        for axis, (b, n) in enumerate(zip(self.box, image.shape[2:], strict=True), 2):
            hidden = hidden.repeat_interleave(b, axis).narrow(axis, 0, n)
        return hidden.to(image.device)


class ImagesPretext(Pretext):
    """Each image's two views are told from those of all other images of the batch (SimCLR)."""

    def outcome(self, network: PretextNetwork, views: tuple[View, View], batch: Batch) -> Outcome:
        assert isinstance(network, ImageNetwork)
        found = network(torch.cat([view.image for view in views]))
        vectors = nn.functional.normalize(found.float(), dim=1)
        ids = torch.arange(batch.places.start, batch.places.stop, device=vectors.device).repeat(2)
        memory, spread = network.memory, self.ranks.count > 1
        with torch.autocast(batch.raw.device.type, enabled=False):
            loss = (sharded_region_contrast if spread else remembering_region_contrast)(
                vectors,
                anchor_ids=ids,
                memory=None if memory is None else memory.rows,
                memory_ids=None if memory is None else memory.ids,
                temperature=self.settings.temperature,
                similarity="dot",
            )
        told = vectors.detach().view(2, -1, 1, vectors.shape[1])
        return Outcome(loss, {}, None, torch.ones_like(told[0, ..., 0], dtype=torch.bool), told)


PRETEXTS: dict[str, type[Pretext]] = {
    "regions": RegionsPretext,
    "masked": MaskedPretext,
    "images": ImagesPretext,
}


def _numbered(views: tuple[View, View], most: int) -> list[Tensor]:
    """The given ids of what both views share as 0, 1, ... by size, the same in both; -1 for id 0 and all beyond the
    ``most`` largest."""
    both = torch.stack([view.shared(view.target)[:, 0].long() for view in views])
    numbered = torch.full_like(both, -1)
    for sample in range(both.shape[1]):
        ids, counts = both[:, sample].unique(return_counts=True)
        ids, counts = ids[ids > 0], counts[ids > 0]
        order = counts.argsort(descending=True, stable=True)[:most]
        for number, region in enumerate(ids[order]):
            numbered[:, sample][both[:, sample] == region] = number
    return [numbered[0], numbered[1]]
