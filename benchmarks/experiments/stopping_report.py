# SPDX-License-Identifier: BSD-3-Clause
"""The tables and the plot of the experiment on the stop by morphology, from its rows."""

import statistics

from sparse_2d3d_report import spread

NETWORKS = {"2d": "2D network", "pseudo": "3D + pseudo-labels"}
# What says which look to take, and where a row has its Dice and step; the last two are alike in all rows of a training.
CHOICES = {
    "solidity": "solidity",
    "area_ratio": "area_ratio",
    "object_count": "object_count",
    "slice": "one more slice",
    "last": "last step",
    "best": "best look, by test labels",
}


def grouped(rows, value):
    """{(network, slices): {choice: values of the seeds}}; value: of a row and what to end its columns with."""
    groups = {}
    for row in sorted(rows, key=lambda row: ([*NETWORKS].index(row["network"]), int(row["slices"]))):
        choices = groups.setdefault((row["network"], int(row["slices"])), {})
        choices.setdefault(row["rule"], []).append(value(row, "stop"))
        if row["rule"] == "solidity":
            for moment in ("last", "best"):
                choices.setdefault(moment, []).append(value(row, moment))
    return groups


def dice(row, moment):
    return float(row[f"dice_{moment}"])


def lost(row, moment):
    return dice(row, "best") - dice(row, moment)


def step(row, moment):
    return int(row[f"step_{moment}"])


def table(rows):
    """Markdown: Dice of the test at the look of each rule, mean and lowest to highest of the seeds; then the steps."""
    lines = []
    for value, what, write in ((dice, "Dice of the test", of_seeds), (step, "step", listed)):
        lines += [f"| {what} | slices | seeds | " + " | ".join(CHOICES.values()) + " |"]
        lines += ["|---|---|---|" + "---|" * len(CHOICES)]
        for (network, slices), choices in grouped(rows, value).items():
            cells = [write(choices.get(choice, [])) for choice in CHOICES]
            seeds = max(map(len, choices.values()))
            lines.append(f"| {NETWORKS[network]} | {slices} | {seeds} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def of_seeds(values):
    return spread(values, 3)


def listed(values):
    return ", ".join(map(str, values))


def plot(rows, path):
    """A panel for each network and number of slices: what every choice loses of the best look; dots are seeds, bars
    their mean. Returns the path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = grouped(rows, lost)
    figure = Figure(figsize=(3.2 * len(groups), 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for panel, ((network, slices), choices) in zip(panels, groups.items(), strict=True):
        shown = [choice for choice in CHOICES if choice in choices and choice != "best"]
        for place, choice in enumerate(shown):
            values = choices[choice]
            panel.bar(place, statistics.mean(values), 0.7, color=f"C{place}")
            panel.plot([place] * len(values), values, "k.", markersize=4)
        names = [CHOICES[choice] for choice in shown]
        panel.set_xticks(range(len(shown)), names, rotation=30, ha="right", fontsize=8)
        panel.set_title(f"{NETWORKS[network]}, {slices} slices", fontsize=10)
    panels[0].set_ylabel("Dice lost of the best look")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
