# SPDX-License-Identifier: BSD-3-Clause
"""A second pass over a predicted file: opening and closing of its segmentation, block by block with a halo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastseg.data.volumes import Box, Volume, open_volume
from fastseg.morphology import Step, apply_steps, halo
from fastseg.predict.second_pass import second_pass


def refine_file(
    predicted: str,
    path: str,
    steps: Sequence[Step],
    *,
    source: Volume,
    exclusive: bool = False,
    **options: Any,
) -> None:
    """Write ``path`` as ``predict_to_file`` would, from ``predicted``, a file of its own making: ``segmentation``
    after the ``steps``, channel by channel, and ``probability`` as it is, if it is there.

    source: the raw volume, for what the output says of itself. exclusive: a voxel that several classes claim after the
    steps stays what it was, if that is among them, else it becomes the first. options: as of ``second_pass``. Memory
    is a few bytes for each voxel of a block, 16 M of them at most, and its halo.
    """
    before = open_volume(f"{predicted}:/segmentation")
    probability = open_volume(f"{predicted}:/probability") if _holds_probability(predicted) else None

    def compute(start: Box, stop: Box) -> Mapping[str, np.ndarray]:
        refined = {"segmentation": _refined(before, start, stop, steps, exclusive)}
        return refined if probability is None else {**refined, "probability": probability.read(start, stop)}

    second_pass(
        path,
        compute,
        source=source,
        channels=before.channels,
        probability=probability is not None,
        settings={
            "refined from": predicted,
            "exclusive": exclusive,
            "morphology": [[operation, list(radii)] for operation, radii in steps],
        },
        **options,
    )


def _refined(before: Volume, start: Box, stop: Box, steps: Sequence[Step], exclusive: bool) -> np.ndarray:
    around = halo(steps)
    low = [max(a - h, 0) for a, h in zip(start, around, strict=True)]
    high = [min(b + h, n) for b, h, n in zip(stop, around, before.shape, strict=True)]
    inside = tuple(slice(a - p, b - p) for a, b, p in zip(start, stop, low, strict=True))
    channels = before.read(low, high)
    refined = np.stack([apply_steps(mask, steps)[inside] for mask in channels]) != 0
    if exclusive:
        kept = refined & (channels[(slice(None), *inside)] != 0)
        first = refined & (refined.cumsum(0) == 1)
        refined = np.where(kept.any(0), kept, first)
    return refined.astype(np.uint8)


def _holds_probability(path: str) -> bool:
    from fastseg.errors import InputError

    try:
        open_volume(f"{path}:/probability")
    except InputError:
        return False
    return True
