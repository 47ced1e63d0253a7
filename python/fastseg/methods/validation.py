# SPDX-License-Identifier: BSD-3-Clause
"""Validation by prediction: whole crops through the sliding window, scored where they are labelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, replace

import numpy as np
import torch
from torch import Tensor

from fastseg.data.annotations import LABELLED, AnnotatedVolume
from fastseg.metrics import Confusion, count_confusion
from fastseg.predict import Tiling, blocks_of, predict_blocks
from fastseg.train.ranks import Ranks

# Probabilities closer to 0 and 1 count as if they were as far: one sure error is no infinite loss.
_SURE = 1e-6


class Validation:
    """Dice and loss of a network over annotated volumes, the blocks shared out over processes.

    probabilities: for each volume what maps its raw windows to probabilities, as ``predict_blocks`` takes it.
    """

    def __init__(
        self,
        volumes: Sequence[AnnotatedVolume],
        probabilities: Sequence[Callable[[Tensor], Tensor]],
        tiling: Tiling,
        threshold: float,
        ranks: Ranks,
    ) -> None:
        self.volumes, self.probabilities, self.ranks = volumes, probabilities, ranks
        self.threshold, self.tiling = threshold, tiling

    def measure(self) -> dict[str, float]:
        """``dice``, the mean over classes of 2 TP / (2 TP + FP + FN) over all volumes, and ``loss``, the mean binary
        cross-entropy of the blended probabilities; both over labelled voxels. Empty without volumes."""
        if not self.volumes:
            return {}
        classes = len(self.volumes[0].classes or [1])
        counts = [Confusion()] * classes
        loss, voxels = 0.0, 0
        for volume, probability in zip(self.volumes, self.probabilities, strict=True):
            # Blocks small enough that there is one for every process.
            share = -(-int(np.prod(volume.shape)) // self.ranks.count)
            tiling = replace(self.tiling, block_voxels=min(self.tiling.block_voxels, share))
            own = list(blocks_of(volume.shape, tiling.block_voxels))[self.ranks.rank :: self.ranks.count]
            for start, stop, predicted in predict_blocks(
                volume.raw, probability, tiling, device=self.ranks.device, blocks=own
            ):
                target, codes = volume.read_target(start, stop)
                labelled = codes[0] == LABELLED
                above = (predicted >= self.threshold).cpu().numpy()
                counts = [
                    count + count_confusion(a, t, labelled)
                    for count, a, t in zip(counts, above, target, strict=True)
                ]
                loss += _loss_sum(predicted, target, labelled)
                voxels += classes * int(np.count_nonzero(labelled))
        table = torch.tensor([astuple(count) for count in counts])
        table = self.ranks.sum(table)
        of_all = self.ranks.sum(torch.tensor([loss, voxels], dtype=torch.float64))
        dice = float(np.mean([Confusion(*row).dice for row in table.tolist()]))
        return {"dice": dice, "loss": float(of_all[0] / of_all[1].clamp(min=1))}


def _loss_sum(predicted: Tensor, target: np.ndarray, labelled: np.ndarray) -> float:
    where = torch.from_numpy(labelled).to(predicted.device)
    chance = predicted[:, where].clamp(_SURE, 1 - _SURE)
    truth = torch.from_numpy(target).to(predicted.device)[:, where]
    right = torch.where(truth != 0, chance, 1 - chance)
    return float(-right.log().sum(dtype=torch.float64))
