# SPDX-License-Identifier: BSD-3-Clause
"""The live picture of pretraining: what regions the network divides images into, or what it restores."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastseg.data.views import View
from fastseg.methods.live_figure import LiveFigure
from fastseg.methods.region_contrast.facts import PretextFacts
from fastseg.methods.region_contrast.pretexts import Outcome

_INCHES, _MOST_IMAGES = 2.2, 3


def draw_pretext(
    figure: LiveFigure, outcome: Outcome, views: tuple[View, View], facts: PretextFacts, step: int
) -> None:
    """A row for each of up to three images, of a volume the middle plane: both views, and the regions of each in
    colours, or the image with hidden blocks and its restoration; below, the part of the voxels that each region has.
    Pretexts without maps have the views alone."""
    images = min(len(views[0].image), _MOST_IMAGES)
    columns = ["view a", "view b"]
    if outcome.maps is not None:
        columns += ["regions of a", "regions of b"]
    elif outcome.restored is not None:
        columns += ["what is seen of a", "restored"]
    bars = facts.share is not None
    drawn = figure.new(_INCHES * len(columns), _INCHES * (images + 0.7 * bars) + 0.5)
    grid = drawn.add_gridspec(images + bars, len(columns), height_ratios=[1.0] * images + [0.6] * bars)
    for row in range(images):
        shown: list[tuple[np.ndarray, dict]] = [(_plane(view.image[row]), {"cmap": "gray"}) for view in views]
        if outcome.maps is not None:
            k = outcome.maps.shape[2]
            colours = {"cmap": "tab20", "vmin": -0.5, "vmax": max(k, 20) - 0.5, "interpolation": "nearest"}
            shown += [(_plane(maps[row].argmax(0, keepdim=True)), colours) for maps in outcome.maps]
        elif outcome.restored is not None and outcome.image is not None:
            limits = {"cmap": "gray", "vmin": float(shown[0][0].min()), "vmax": float(shown[0][0].max())}
            shown += [(_plane(t[row]), limits) for t in (outcome.image, outcome.restored)]
        for column, (plane, options) in enumerate(shown):
            panel = drawn.add_subplot(grid[row, column])
            panel.imshow(plane, **options)
            panel.set_xticks([])
            panel.set_yticks([])
            if row == 0:
                panel.set_title(columns[column], fontsize=9)
    if facts.share is not None:
        panel = drawn.add_subplot(grid[images, :])
        panel.bar(range(len(facts.share)), facts.share, color="#19a34a")
        panel.axhline(1 / len(facts.share), color="#888888", linewidth=0.8)
        panel.set_ylabel("share", fontsize=8)
        panel.set_xlabel(f"region, {facts.alive} of {len(facts.share)} in use", fontsize=8)
    drawn.suptitle(f"step {step}", fontsize=10)
    figure.show(drawn, step)


def _plane(volume: Tensor) -> np.ndarray:
    """The middle plane, across its shortest axis, of (C, z, y, x), the mean over channels."""
    mean = volume.detach().float().mean(0)
    axis = int(np.argmin(mean.shape))
    return torch.select(mean, axis, mean.shape[axis] // 2).cpu().numpy()
