# SPDX-License-Identifier: BSD-3-Clause
"""The table and the plot of the experiment sparse_2d3d, from its rows."""

import math
import statistics
from collections import defaultdict

NAMES = {"2d": "(i) 2D network", "pseudo": "(ii) 3D + pseudo-labels", "sparse": "(iii) 3D, slices only"}
TITLES = {"phantoms": "phantoms", "lucchi": "em_lucchi"}
MEASURES = {
    "dice": "Dice",
    "precision": "precision",
    "xz_dice": "xz Dice",
    "surface_distance": "surface distance",
}
UNITS = {"phantoms": "um", "lucchi": "nm"}
DIGITS = {"phantoms": 2, "lucchi": 0}  # of distances


def grouped(rows):
    """{(data, slices, arm): {measure: values of the seeds}}"""
    groups = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for measure in MEASURES:
            groups[row["data"], int(row["slices"]), row["arm"]][measure].append(float(row[measure]))
    return groups


def table(rows):
    """Markdown: mean and, in brackets, lowest to highest of the seeds."""
    groups = grouped(rows)
    lines = []
    for data in dict.fromkeys(key[0] for key in groups):
        heads = [
            f"{MEASURES[m]}, {UNITS[data]}" if m == "surface_distance" else MEASURES[m] for m in MEASURES
        ]
        lines += [f"| {TITLES[data]}, slices | arm | seeds | " + " | ".join(heads) + " |"]
        lines += ["|---|---|---|" + "---|" * len(heads)]
        for _, count, arm in sorted(
            (k for k in groups if k[0] == data), key=lambda k: (k[1], [*NAMES].index(k[2]))
        ):
            group = groups[data, count, arm]
            cells = [spread(group[m], DIGITS[data] if m == "surface_distance" else 3) for m in MEASURES]
            lines.append(f"| {count} | {NAMES[arm]} | {len(group['dice'])} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def spread(values, digits):
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return "none found"
    text = f"{statistics.mean(finite):.{digits}f} ({min(finite):.{digits}f} to {max(finite):.{digits}f})"
    return text if len(finite) == len(values) else f"{text}, {len(values) - len(finite)} found none"


def draw(rows, path):
    """Dice, xz Dice and surface distance against the number of slices; the line is the mean, dots are seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = grouped(rows)
    sets = list(dict.fromkeys(key[0] for key in groups))
    measures = ("dice", "xz_dice", "surface_distance")
    figure = Figure(figsize=(11, 3.4 * len(sets)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for panels, data in zip(figure.subplots(len(sets), len(measures), squeeze=False), sets, strict=True):
        counts = sorted({key[1] for key in groups if key[0] == data})
        for panel, measure in zip(panels, measures, strict=True):
            for arm, colour in zip(NAMES, ("tab:gray", "tab:orange", "tab:blue"), strict=True):
                points = {c: groups[data, c, arm][measure] for c in counts if (data, c, arm) in groups}
                finite = {c: [v for v in values if math.isfinite(v)] for c, values in points.items()}
                means = {c: statistics.mean(values) for c, values in finite.items() if values}
                panel.plot([*means], [*means.values()], color=colour, label=NAMES[arm])
                dots = [(c, v) for c, values in finite.items() for v in values]
                panel.scatter(*zip(*dots, strict=True), color=colour, s=12) if dots else None
            panel.set_xscale("log", base=2)
            panel.set_xticks(counts, counts)
            panel.set_xlabel("annotated slices")
            unit = f", {UNITS[data]}" if measure == "surface_distance" else ""
            panel.set_title(f"{TITLES[data]}: {MEASURES[measure]}{unit}", fontsize=10)
            panel.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
