# SPDX-License-Identifier: BSD-3-Clause
"""Scores and pictures of a segmentation beside its truth, for a person to judge."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

import numpy as np

from fastseg.data.annotations import AnnotatedVolume
from fastseg.data.volumes import Volume
from fastseg.metrics import Confusion
from fastseg.report.pictures import class_colour, for_display
from fastseg.train.checkpoint import temporary_name, write_atomically

_TRUTH_COLOUR = (0.1, 0.9, 0.3)
_PREDICTION_COLOUR = (1.0, 0.55, 0.0)
_PANEL_INCHES = 4.0


def write_metrics(path: str, results: Mapping[str, Confusion]) -> None:
    """JSON of all scores and counts, one entry per volume (and class)."""
    content = {name: confusion.as_dict() for name, confusion in results.items()}
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def metrics_table(results: Mapping[str, Confusion]) -> str:
    """The scores as text, the confusion matrix in voxels beside them."""
    names = [*results]
    width = max(len("volume"), *(len(name) for name in names))
    head = f"{'volume':<{width}}    Dice     IoU  precision  recall" + "".join(
        f"  {count:>12}" for count in ("TP", "FP", "FN", "TN")
    )
    rows = [
        f"{name:<{width}}  {c.dice:.4f}  {c.iou:.4f}     {c.precision:.4f}  {c.recall:.4f}"
        f"  {c.true_positive:>12,}  {c.false_positive:>12,}  {c.false_negative:>12,}  {c.true_negative:>12,}"
        for name, c in results.items()
    ]
    return "\n".join([head, *rows])


def draw_comparison(
    path: str,
    truth: AnnotatedVolume,
    predictions: Mapping[str, Volume],
    title: str,
    classes: Sequence[str] = (),
) -> None:
    """A PNG of raw, truth and each prediction in the xy plane and, for volumes, the xz plane with most foreground.

    Contours over the raw data, green truth and orange predictions; of several ``classes``, which are their names, each
    has a colour of its own and truth the same as predictions. The xz plane is stretched to the true proportions where
    the voxel size is known.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    depth, height, width = truth.shape
    axes = [0] if depth < 4 else [0, 1]
    voxel = truth.raw.voxel_size or (1.0, 1.0, 1.0)
    ratios = [height / width] + [depth * voxel[0] / (width * voxel[2])] * (len(axes) - 1)
    heights = [max(_PANEL_INCHES * ratio, 0.4) for ratio in ratios]
    columns = 2 + len(predictions)
    size = (columns * _PANEL_INCHES, sum(heights) + 0.35 * len(axes) + 0.45)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(axes), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for row, axis in zip(panels, axes, strict=True):
        position = _fullest_plane(truth, next(iter(predictions.values())), axis)
        start, stop = [0, 0, 0], list(truth.shape)
        start[axis], stop[axis] = position, position + 1
        image = for_display(truth.raw.read(start, stop).take(0, axis + 1))
        overlays = {"raw": None, "truth": truth.read_target(start, stop)[0].take(0, axis + 1)}
        overlays |= {name: found.read(start, stop).take(0, axis + 1) for name, found in predictions.items()}
        aspect = 1.0 if axis == 0 else voxel[0] / voxel[2]
        plane = f"{'xy' if axis == 0 else 'xz'} at {'zy'[axis]} = {position + truth.raw.origin[axis]}"
        for panel, (name, overlay) in zip(row, overlays.items(), strict=True):
            panel.imshow(image, cmap="gray", aspect=aspect)
            alone = _TRUTH_COLOUR if name == "truth" else _PREDICTION_COLOUR
            for number, mask in enumerate(() if overlay is None else overlay):
                if not mask.any():
                    continue
                colour = _class_colour(number) if len(classes) > 1 else alone
                tint = np.zeros((*mask.shape, 4))
                tint[mask != 0] = (*colour, 0.35)
                panel.imshow(tint, aspect=aspect, interpolation="nearest")
                panel.contour(mask, levels=[0.5], colors=[colour], linewidths=1.0)
            panel.set_title(f"{name}, {plane}", fontsize=10)
            panel.set_xticks([])
            panel.set_yticks([])
    figure.suptitle(title, fontsize=12)
    if len(classes) > 1:
        patches = [Patch(color=_class_colour(number), label=name) for number, name in enumerate(classes)]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 6), frameon=False)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    partial = temporary_name(path)
    figure.savefig(partial, format="png")
    os.replace(partial, path)


def _fullest_plane(truth: AnnotatedVolume, prediction: Volume, axis: int) -> int:
    """The plane with most true foreground, or most predicted where there is no truth; each class counts alike, however
    rare it is."""
    others = tuple(a + 1 for a in range(3) if a != axis)
    for use_truth in (True, False):
        counts = np.zeros((prediction.channels, truth.shape[axis]), np.int64)
        for start, stop in prediction.blocks():
            box = truth.read_target(start, stop)[0] if use_truth else prediction.read(start, stop)
            counts[:, start[axis] : stop[axis]] += np.count_nonzero(box, axis=others)
        if counts.any():
            return int((counts / counts.sum(1, keepdims=True).clip(1)).sum(0).argmax())
    return truth.shape[axis] // 2


def _class_colour(number: int) -> tuple[float, float, float]:
    red, green, blue = class_colour(number)
    return red / 255, green / 255, blue / 255
