# SPDX-License-Identifier: BSD-3-Clause
"""The table and the plot of the experiment on pretraining, from its rows."""

import numpy as np

NAMES = {
    "none": "none",
    "masked": "hidden blocks",
    "images": "images",
    "grey": "regions, grey alone",
    "semantic": "regions, semantic alone",
    "both": "regions, both",
}


def grouped(rows):
    """{(data, rate): {labels: {arm: Dice of the seeds}}}, labels and rates rising."""
    groups = {}
    for row in sorted(rows, key=lambda row: (float(row["learning_rate"]), float(row["labels"]))):
        columns = groups.setdefault((row["data"], float(row["learning_rate"])), {})
        arms = columns.setdefault(float(row["labels"]), {})
        arms.setdefault(row["arm"], []).append(float(row["dice"]))
    return groups


def table(rows):
    """Markdown: for each arm the mean over seeds and its deviation, by labelled images."""
    lines = []
    for (data, rate), columns in grouped(rows).items():
        lines.append(
            f"| {data}, rate {rate:g} | " + " | ".join(f"{labels:g} labelled" for labels in columns) + " |"
        )
        lines.append("|---|" + "---|" * len(columns))
        for arm, name in NAMES.items():
            cells = [spread(arms.get(arm, [])) for arms in columns.values()]
            if any(cells):
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def spread(values):
    if not values:
        return ""
    return f"{np.mean(values):.3f} ± {np.std(values):.3f} ({len(values)})"


def plot(rows, path):
    """Dice against labelled images, a panel for each set and rate: means and seeds. Returns the path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = grouped(rows)
    rows = -(-len(groups) // 2)
    figure = Figure(figsize=(10, 4 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for place, ((data, rate), columns) in enumerate(groups.items(), 1):
        panel = figure.add_subplot(rows, min(len(groups), 2), place)
        for number, (arm, name) in enumerate(NAMES.items()):
            found = [(labels, arms[arm]) for labels, arms in columns.items() if arm in arms]
            if not found:
                continue
            colour = f"C{number}"
            panel.plot([x for x, _ in found], [np.mean(v) for _, v in found], "s-", color=colour, label=name)
            for labels, values in found:
                panel.plot([labels] * len(values), values, ".", color=colour, markersize=4)
        panel.set_xscale("log", base=2)
        panel.set_title(f"{data}, rate {rate:g}")
        panel.set_xlabel("labelled images")
        panel.set_ylabel("Dice")
        panel.legend(fontsize=8)
    figure.savefig(path)
    return path
