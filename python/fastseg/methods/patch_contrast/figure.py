# SPDX-License-Identifier: BSD-3-Clause
"""The live picture of patch contrast: confidence maps, the windows drawn in them, and how far apart they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastseg.methods.live_figure import LiveFigure
from fastseg.methods.patch_contrast.config import PatchContrastConfig
from fastseg.nn.patch_contrast import PatchContrastTerms
from fastseg.ops.patch_entropy import per_axis
from fastseg.train.checkpoint import RunFolder

_POSITIVE, _NEGATIVE = "#19a34a", "#e4572e"
_INCHES = 2.6

# Points of the curves that are read back at a time: one per step would wait for the device in each.
_STEPS_PER_POINT = 10


class LivePicture:
    """``figures/patch_contrast.png`` and TensorBoard's ``patch_contrast/windows``, redrawn every so many steps.

    A row for the first image of the batch: itself, as it is whatever is contrasted, with the windows of channel 0, then
    each map with its windows, positive ones green and negative ones red; of a volume the middle plane and the windows
    that cross it. Below, the mean distances D_pp and D_pn of the steps of this process so far, every tenth.
    """

    def __init__(self, run: RunFolder | None, settings: PatchContrastConfig, *, every: int, on: bool) -> None:
        self.settings, self.every, self.on = settings, every, on and run is not None
        self.figure = None if run is None else LiveFigure(run, "patch_contrast", "patch_contrast/windows")
        self.steps: list[int] = []
        self.distances: list[Tensor] = []

    def add_point(self, step: int, distances: Tensor) -> None:
        """(2,) D_pp and D_pn of a step, of which every tenth is kept, once."""
        if self.on and step % _STEPS_PER_POINT == 0 and step not in self.steps[-1:]:
            self.steps.append(step)
            self.distances.append(distances.clone())

    def draws(self, step: int) -> bool:
        """Whether there is a picture of this step."""
        return self.on and step % self.every == 0

    def close(self) -> None:
        if self.figure is not None:
            self.figure.close()

    def draw(self, step: int, image: Tensor, confidence: Tensor, terms: PatchContrastTerms) -> None:
        """The picture of a step, of the first of the images and of their maps."""
        assert self.figure is not None
        image, confidence = image[0].detach(), confidence[0].detach()
        middle = image.shape[1] // 2 if image.dim() == 4 else None
        plane = image if middle is None else image[:, middle]
        maps = confidence if middle is None else confidence[:, middle]
        plane, maps = plane.float().cpu().numpy(), maps.float().cpu().numpy()
        channels = len(maps)
        figure = self.figure.new(_INCHES * (channels + 1), 2 * _INCHES + 0.6)
        grid = figure.add_gridspec(2, channels + 1)
        grey = len(plane) not in (3,)
        shown = plane.mean(0) if grey else np.moveaxis(plane, 0, -1).clip(0, 1)
        for column in range(channels + 1):
            panel = figure.add_subplot(grid[0, column])
            channel = max(column - 1, 0)
            panel.imshow(shown if column == 0 else maps[channel], cmap="gray", vmin=0, vmax=1)
            panel.set_title("image, windows of 0" if column == 0 else f"confidence {channel}", fontsize=9)
            panel.set_xticks([])
            panel.set_yticks([])
            self._add_windows(panel, terms, channel, middle)
        panel = figure.add_subplot(grid[1, :])
        for name, values, colour in zip(
            ("D_pp, positives to positives", "D_pn, positives to negatives"),
            torch.stack(self.distances).float().cpu().numpy().T,
            (_POSITIVE, _NEGATIVE),
            strict=True,
        ):
            panel.plot(self.steps, values, color=colour, label=name)
        panel.set_xlabel("step")
        panel.legend(fontsize=8, loc="upper left")
        figure.suptitle(f"step {step}: windows counted as objects green, as the rest red", fontsize=10)
        self.figure.show(figure, step)

    def _add_windows(self, panel: Any, terms: PatchContrastTerms, channel: int, middle: int | None) -> None:
        from matplotlib.patches import Rectangle

        corners = terms.samples.corners[0, channel].cpu().numpy()
        parity = terms.samples.parity[0, channel].cpu().numpy()
        size = per_axis("patch_size", self.settings.patch_size, corners.shape[1])
        for corner, positive in zip(corners, parity, strict=True):
            if middle is not None and not corner[0] <= middle < corner[0] + size[0]:
                continue
            (y, x), (height, width) = corner[-2:], size[-2:]
            colour = _POSITIVE if positive else _NEGATIVE
            panel.add_patch(
                Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.2)
            )
