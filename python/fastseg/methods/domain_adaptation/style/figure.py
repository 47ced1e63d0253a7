# SPDX-License-Identifier: BSD-3-Clause
"""The live picture of style transfer: target images, what the generator makes of them, and source images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from fastseg.methods.domain_adaptation.style.facts import BINS, StyleFacts
from fastseg.methods.live_figure import LiveFigure

MOST_IMAGES = 3
_INCHES = 3.0
_COLOURS = {"target": "#888888", "restyled": "#e4572e", "source": "#19a34a"}


class Look(NamedTuple):
    """At batches: the facts, the histograms (3, BINS), and a few images (N, C, H, W) of target, restyled, source."""

    facts: StyleFacts
    levels: np.ndarray
    images: dict[str, Tensor]


def draw_styles(figure: LiveFigure, look: Look, step: int) -> None:
    """A row for each of up to three images: target, restyled, and a source image to compare with, in the same greys;
    below, the histograms of all three."""
    facts, levels, images = look
    rows = min(len(images["target"]), MOST_IMAGES)
    drawn = figure.new(_INCHES * len(images), _INCHES * (rows + 0.6) + 0.5)
    grid = drawn.add_gridspec(rows + 1, len(images), height_ratios=[1.0] * rows + [0.6])
    for row in range(rows):
        for column, (name, batch) in enumerate(images.items()):
            panel = drawn.add_subplot(grid[row, column])
            panel.imshow(batch[row].detach().float().mean(0).cpu().numpy(), cmap="gray", vmin=-1, vmax=1)
            panel.set_xticks([])
            panel.set_yticks([])
            if row == 0:
                panel.set_title(name, fontsize=9)
    panel = drawn.add_subplot(grid[rows, :])
    centres = (np.arange(BINS) + 0.5) * (2 / BINS) - 1
    for (name, colour), shares in zip(_COLOURS.items(), levels, strict=True):
        panel.plot(centres, shares, color=colour, label=name, linewidth=1.2)
    panel.set_yticks([])
    panel.set_xlabel(
        f"grey levels, {facts.distance:.3f} off the source's ({facts.distance_before:.3f} before)", fontsize=8
    )
    panel.legend(fontsize=8)
    drawn.suptitle(f"step {step}", fontsize=10)
    figure.show(drawn, step)
