# SPDX-License-Identifier: BSD-3-Clause
"""What pretraining has learnt so far: regions in use, how close positives are and how spread all of them; and what
went wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastseg.methods.region_contrast.pretexts import Outcome
from fastseg.train.ranks import Ranks

# A region is alive if it has at least this part of the voxels that it would have if all were alike.
_ALIVE = 0.1
# One region has nearly all; embeddings are nearly alike (mean cosine of different regions).
_TAKES_ALL, _ALIKE = 0.95, 0.95
# Below this deviation of a restored voxel, relative to that of the image, it is the same grey everywhere.
_FLAT = 0.05


@dataclass(frozen=True)
class PretextFacts:
    """loss: of the pretext task. share: of the voxels, by region. alignment: mean squared distance of positives, and
    uniformity: log of the mean of exp(-2 d^2) over other pairs (Wang & Isola 2020), of unit vectors. cosine: mean over
    pairs that are no positives. contrast: deviation of the restored image over that of the image. directions: of the
    deepest features, (sum of eigenvalues)^2 / sum of their squares, of the correlation of channels; as many as there
    are channels where all differ, 1 where all are alike. None: the task has no such thing."""

    loss: float
    share: list[float] | None = None
    alignment: float | None = None
    uniformity: float | None = None
    cosine: float | None = None
    contrast: float | None = None
    directions: float | None = None

    @property
    def alive(self) -> int | None:
        return None if self.share is None else sum(s >= _ALIVE / len(self.share) for s in self.share)

    def measures(self) -> dict[str, float]:
        """Numbers for the log."""
        named: dict[str, Any] = asdict(self) | {"alive": self.alive}
        return {name: float(value) for name, value in named.items() if isinstance(value, int | float)}

    def trouble(self) -> list[str]:
        """What has collapsed, and what to change."""
        notes = []
        if self.share is not None and max(self.share) > _TAKES_ALL:
            notes.append(
                f"region {self.share.index(max(self.share))} has {100 * max(self.share):.3g} % of the voxels: the "
                "assignment has collapsed. Raise region_contrast.grey_weight or beta, or lower train.learning_rate"
            )
        if self.cosine is not None and self.cosine > _ALIKE:
            notes.append(
                f"embeddings of different regions or images have a mean cosine of {self.cosine:.3g}: they have "
                "collapsed to one. Raise region_contrast.semantic_weight, train.batch or memory, or lower temperature"
            )
        if self.contrast is not None and self.contrast < _FLAT:
            notes.append(
                f"restored images have {100 * self.contrast:.3g} % of the contrast of the images: nothing but their "
                "mean is learnt yet. Train longer, or lower region_contrast.mask_size or mask_share"
            )
        return notes


class FactSums:
    """Sums over batches, joined over processes at the end."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, outcome: Outcome, images: Tensor) -> None:
        """An outcome, and the images (B, C, z, y, x) of its first view."""
        self._add("loss", outcome.loss, 1)
        if outcome.share is not None:
            self._add("share", outcome.share.mean((0, 1)), 1)
        if outcome.restored is not None:
            deviations = (t.float().std((2, 3, 4)).mean() for t in (outcome.restored, images))
            for name, deviation in zip(("restored", "image"), deviations, strict=True):
                self._add(name, deviation, 1)
        if outcome.vectors is None or outcome.used is None:
            return
        used = outcome.used.flatten()
        first, second = outcome.vectors.flatten(1, 2).float()
        self._add("alignment", ((first - second).square().sum(-1) * used).sum(), used.sum())
        cosine = first @ first.T
        pairs = (used[:, None] & used[None, :]).fill_diagonal_(False)
        self._add("cosine", (cosine * pairs).sum(), pairs.sum())
        self._add("uniformity", (torch.exp(4 * (cosine - 1)) * pairs).sum(), pairs.sum())

    def add_features(self, features: Tensor) -> None:
        """The deepest features (B, C, z, y, x) of some images."""
        rows = features.double().movedim(1, -1).flatten(0, -2)
        moments = torch.cat([rows.sum(0, keepdim=True), rows.T @ rows])
        self._add("moments", moments, len(rows))

    def facts(self, ranks: Ranks) -> PretextFacts:
        """The means; every process must call it."""
        means = {}
        for name, sums in self.sums.items():
            *values, weight = ranks.sum(sums.cpu()).tolist()
            means[name] = [value / weight for value in values] if weight else []
        moments = means.pop("moments", [])
        single = {name: value[0] for name, value in means.items() if name != "share" and value}
        log = torch.tensor(single["uniformity"]).log().item() if "uniformity" in single else None
        contrast = single["restored"] / max(single["image"], 1e-12) if "restored" in single else None
        return PretextFacts(
            single["loss"],
            means.get("share"),
            single.get("alignment"),
            log,
            single.get("cosine"),
            contrast,
            _directions(moments) if moments else None,
        )

    def _add(self, name: str, values: Tensor, weight: Tensor | int) -> None:
        row = torch.cat(
            [values.detach().double().reshape(-1), torch.as_tensor([float(weight)]).to(values.device)]
        )
        self.sums[name] = self.sums[name] + row if name in self.sums else row


def _directions(moments: list[float]) -> float | None:
    """Of C channels, from the means of each (C) and of their products (C, C); None where none of them varies."""
    channels = int(len(moments) ** 0.5)  # C + C^2 numbers
    mean, products = torch.tensor(moments, dtype=torch.float64).view(-1, channels).split([1, channels])
    covariance = products - mean.T @ mean
    variance = covariance.diagonal()
    varies = variance > 1e-9 * products.diagonal()
    if not varies.any():
        return None
    deviation = variance[varies].sqrt()
    correlation = covariance[varies][:, varies] / torch.outer(deviation, deviation)
    return float(len(deviation) ** 2 / correlation.square().sum())
