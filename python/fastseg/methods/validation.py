# SPDX-License-Identifier: BSD-3-Clause
"""Validation by prediction: whole crops through the sliding window, scored where they are labelled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np
import torch
from torch import Tensor

from fastseg.data.annotations import LABELLED, AnnotatedVolume
from fastseg.data.volumes import Box
from fastseg.metrics import Confusion, count_confusion
from fastseg.predict import CHUNK, Grid, Network, Tiling, predict_blocks, segmented
from fastseg.train.ranks import Ranks

# Probabilities closer to 0 and 1 count as if they were as far: one sure error is no infinite loss.
_SURE = 1e-6


class Validation:
    """Dice and loss of a network over annotated volumes, the blocks shared out over processes.

    probabilities, tilings: for each volume what maps its raw windows to probabilities, as ``predict_blocks`` takes it,
    and how it is cut. exclusive: as of ``segmented``. names: of the classes, for the Dice of each.
    """

    def __init__(
        self,
        volumes: Sequence[AnnotatedVolume],
        probabilities: Sequence[Network],
        tilings: Sequence[Tiling],
        threshold: float,
        ranks: Ranks,
        *,
        exclusive: bool = False,
        names: Sequence[str] = (),
    ) -> None:
        self.volumes, self.probabilities, self.ranks = volumes, probabilities, ranks
        self.threshold, self.exclusive, self.names = threshold, exclusive, names
        self.tilings = [shared_out(t, v.shape, ranks.count) for t, v in zip(tilings, volumes, strict=True)]

    def measure(self) -> dict[str, float]:
        """``dice``, the mean over classes of 2 TP / (2 TP + FP + FN) over all volumes, and ``loss``, the mean binary
        cross-entropy of the blended probabilities, of exclusive classes the cross-entropy; both over labelled voxels.
        Of several classes ``dice_<name>``, too. Empty without volumes."""
        if not self.volumes:
            return {}
        classes = len(self.volumes[0].classes or [1])
        counts = [Confusion()] * classes
        loss, voxels = 0.0, 0
        for volume, probability, tiling in zip(self.volumes, self.probabilities, self.tilings, strict=True):
            own = Grid(volume.shape, tiling, CHUNK).blocks(self.ranks.rank, self.ranks.count)
            for start, stop, predicted in predict_blocks(
                volume.raw, probability, tiling, classes=classes, device=self.ranks.device, blocks=own
            ):
                target, codes = volume.read_target(start, stop)
                labelled = codes[0] == LABELLED
                above = segmented(predicted, self.threshold, self.exclusive).cpu().numpy()
                counts = [
                    count + count_confusion(a, t, labelled)
                    for count, a, t in zip(counts, above, target, strict=True)
                ]
                loss += _loss_sum(predicted, target, labelled, self.exclusive)
                voxels += (1 if self.exclusive else classes) * int(np.count_nonzero(labelled))
        table = torch.tensor([astuple(count) for count in counts])
        table = self.ranks.sum(table)
        of_all = self.ranks.sum(torch.tensor([loss, voxels], dtype=torch.float64))
        dice = [Confusion(*row).dice for row in table.tolist()]
        own = (
            {f"dice_{name}": d for name, d in zip(self.names, dice, strict=True)}
            if len(self.names) > 1
            else {}
        )
        return {"dice": float(np.mean(dice)), **own, "loss": float(of_all[0] / of_all[1].clamp(min=1))}


def shared_out(tiling: Tiling, shape: Box, count: int) -> Tiling:
    """The tiling in blocks small enough that there is one for each of ``count`` processes."""
    return replace(tiling, block_voxels=min(tiling.block_voxels, -(-math.prod(shape) // count)))


def _loss_sum(predicted: Tensor, target: np.ndarray, labelled: np.ndarray, exclusive: bool) -> float:
    where = torch.from_numpy(labelled).to(predicted.device)
    chance = predicted[:, where].clamp(_SURE, 1 - _SURE)
    truth = torch.from_numpy(target).to(predicted.device)[:, where]
    if exclusive:
        background = (1 - predicted[:, where].sum(0)).clamp(_SURE, 1 - _SURE)
        right = torch.where(truth != 0, chance, 1).prod(0)
        right = torch.where((truth != 0).any(0), right, background)
        return float(-right.log().sum(dtype=torch.float64))
    right = torch.where(truth != 0, chance, 1 - chance)
    return float(-right.log().sum(dtype=torch.float64))
