# SPDX-License-Identifier: BSD-3-Clause
"""The table and the plot of the experiment on domain adaptation, from its rows."""

import numpy as np
from region_contrast_report import spread

NAMES = {
    "none": "none",
    "matched": "histogram matching",
    "style": "style transfer",
    "pretrain": "pretraining",
    "pretrain_above": "pretraining, deepest level free",
    "pretrain_free": "pretraining, nothing frozen",
    "ynet": "Attention Y-Net",
    "ynet_above": "Attention Y-Net, deepest level free",
    "ynet_free": "Attention Y-Net, nothing frozen",
}
MOMENTS = {
    "iou_stop": "stop by morphology",
    "iou_late": "the same, second half",
    "iou_last": "last step",
    "iou_best": "best look, by its labels",
}
ALL = "all pairs"


def values_of(rows, pair, arm, moment):
    """Of the rows of a pair, or all; an arm, or all."""
    return [float(row[moment]) for row in rows if pair in (row["data"], ALL) and arm in (row["arm"], None)]


def table(rows):
    """Markdown: IoU of the target's test slices for each arm, the mean over seeds and its deviation."""
    lines = []
    for pair in [*dict.fromkeys(row["data"] for row in rows), ALL]:
        lines += [f"| {pair} | " + " | ".join(MOMENTS.values()) + " |", "|---|" + "---|" * len(MOMENTS)]
        for arm, name in NAMES.items():
            cells = [spread(values_of(rows, pair, arm, moment)) for moment in MOMENTS]
            if any(cells):
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
        if pair == ALL:
            cells = [spread(values_of(rows, ALL, None, moment)) for moment in MOMENTS]
            lines.append("| all arms | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def plot(rows, path):
    """A group of bars for each arm, one for each moment; dots are seeds. Returns the path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pairs = list(dict.fromkeys(row["data"] for row in rows))
    figure = Figure(figsize=(5 * len(pairs), 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for column, pair in enumerate(pairs):
        panel = figure.add_subplot(1, len(pairs), column + 1)
        arms = [arm for arm in NAMES if values_of(rows, pair, arm, "iou_stop")]
        for number, (moment, name) in enumerate(MOMENTS.items()):
            for place, arm in enumerate(arms):
                values, at = values_of(rows, pair, arm, moment), place + 0.21 * (number - 1.5)
                label = name if place == 0 else None
                panel.bar(at, np.mean(values), 0.2, color=f"C{number}", label=label)
                panel.plot([at] * len(values), values, "k.", markersize=4)
        panel.set_xticks(range(len(arms)), [NAMES[arm] for arm in arms], rotation=20, ha="right", fontsize=8)
        panel.set_title(pair)
        panel.set_ylabel("IoU")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8
    )
    figure.savefig(path)
    return path
