# SPDX-License-Identifier: BSD-3-Clause
"""What a style transfer has come to: grey levels, contrast and content of restyled images, and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastseg.methods.domain_adaptation.style.network import PERCENTILES_AT
from fastseg.train.ranks import Ranks

BINS = 64

# Edges are those of means over so many pixels: single ones are noise, which a style may well change.
_SMOOTHED = 4

_LEAST_CONTRAST, _LEAST_CONTENT = 0.2, 0.3
_SURE = 0.1

# Greys that are so near from the start, as normalised ones may be, a style can move either way.
_NEAR = 0.1


@dataclass(frozen=True)
class StyleFacts:
    """Means over sampled images of all processes.

    distance: between the grey levels of restyled and source images, the mean shift (Wasserstein's) that takes one
    histogram to the other, as a share of the source's range from 1st to 99th percentile; distance_before: of target
    images. contrast: deviation within restyled images, as a share of that within source images. content: correlation of
    the edges of target images and of what becomes of them, 1 for all kept. score_source, score_restyled: what the
    discriminator gives them, 1 for source and 0 for restyled where it is sure.
    """

    distance: float
    distance_before: float
    contrast: float
    content: float
    score_source: float
    score_restyled: float

    def trouble(self) -> list[str]:
        """A line for each thing that went wrong."""
        notes = []
        if self.contrast < _LEAST_CONTRAST:
            notes.append(
                f"restyled images are nearly of one grey (contrast {self.contrast:.2f} of the source's): the generator "
                "has collapsed or hardly begun to learn; train longer, lower style.learning_rate or raise "
                "style.nce_weight"
            )
        elif self.content < _LEAST_CONTENT:
            notes.append(
                f"restyled images have other edges than target images (correlation {self.content:.2f}): structures may "
                "be invented; train longer or raise style.nce_weight"
            )
        if self.score_source > 1 - _SURE and self.score_restyled < _SURE:
            notes.append(
                f"the discriminator knows all restyled images (scores {self.score_source:.2f} for source, "
                f"{self.score_restyled:.2f} for restyled), and the generator learns no style from it: lower "
                "style.learning_rate or style.nce_weight, or train longer"
            )
        if self.distance > max(self.distance_before, _NEAR):
            notes.append(
                f"grey levels of restyled images are further from the source's than those of target images "
                f"({self.distance:.3f}, {self.distance_before:.3f} before): train longer"
            )
        return notes


class FactSums:
    """Images in, facts out; everything is summed on the device until then."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(
        self, target: Tensor, restyled: Tensor, source: Tensor, score_restyled: Tensor, score_source: Tensor
    ) -> None:
        """Images (B, C, H, W) of the generator's range, and their scores."""
        levels = torch.cat([_histogram(images) for images in (target, restyled, source)])
        means = [
            _contrast(restyled),
            _contrast(source),
            _correlation(_edges(target), _edges(restyled)),
            score_source.double().mean((1, 2, 3)),
            score_restyled.double().mean((1, 2, 3)),
            torch.ones(len(target), dtype=torch.float64, device=target.device),
        ]
        sums = torch.cat([levels, torch.stack([mean.sum() for mean in means])])
        self.total = sums if self.total is None else self.total + sums

    def facts(self, ranks: Ranks) -> tuple[StyleFacts, np.ndarray]:
        """And the histograms of target, restyled and source images, (3, BINS) shares of the pixels."""
        assert self.total is not None
        sums = ranks.sum(self.total.cpu())
        levels = (sums[: 3 * BINS].view(3, BINS) / sums[:BINS].sum()).numpy()
        restyled, source, content, score_source, score_restyled, images = sums[3 * BINS :].tolist()
        before, _, _ = shifts = np.abs(np.cumsum(levels - levels[2], axis=1)).sum(1) / (BINS * PERCENTILES_AT)
        facts = StyleFacts(
            distance=float(shifts[1]),
            distance_before=float(before),
            contrast=restyled / max(source, 1e-12),
            content=content / images,
            score_source=score_source / images,
            score_restyled=score_restyled / images,
        )
        return facts, levels


def _histogram(images: Tensor) -> Tensor:
    """(BINS,) numbers of values, those beyond the range in the outermost bins."""
    bins = ((images.float().clamp(-1, 1) + 1) * (BINS / 2)).long().clamp(max=BINS - 1)
    return torch.bincount(bins.flatten(), minlength=BINS).double()


def _contrast(images: Tensor) -> Tensor:
    """(B,) the deviation within each image, the mean of its channels."""
    return images.double().std((2, 3)).mean(1)


def _edges(images: Tensor) -> Tensor:
    """(B, N) how steep the mean over channels is at each place."""
    smooth = F.avg_pool2d(images.double().mean(1, keepdim=True), _SMOOTHED, 1)
    down = smooth[..., 1:, :-1] - smooth[..., :-1, :-1]
    right = smooth[..., :-1, 1:] - smooth[..., :-1, :-1]
    return torch.hypot(down, right).flatten(1)


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """(B,) of rows; 0 where one is constant."""
    one, other = (rows - rows.mean(1, keepdim=True) for rows in (one, other))
    return F.cosine_similarity(one, other, dim=1, eps=1e-12)
