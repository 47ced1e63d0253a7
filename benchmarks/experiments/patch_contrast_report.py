# SPDX-License-Identifier: BSD-3-Clause
"""The table of the experiment on segmentation without labels."""

import numpy as np


def table(rows):
    """Markdown: the mean over seeds with its deviation, of an arm without seeds the deviation over images."""
    lines = [
        "| data | arm | Dice | without openings and closings | seeds | steps | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["data"] for row in rows):
        for arm in dict.fromkeys(row["arm"] for row in rows if row["data"] == name):
            found = [row for row in rows if (row["data"], row["arm"]) == (name, arm)]
            cells = []
            for key in ("dice", "dice_raw"):
                values = [float(row[key]) for row in found]
                if found[0]["seed"]:
                    cells.append(f"{np.mean(values):.3f} ± {np.std(values):.3f}")
                else:
                    cells.append(f"{values[0]:.3f}")
            seeds = len(found) if found[0]["seed"] else ""
            taken = ", ".join(row["step"] for row in found) if found[0]["step"] else ""
            seconds = ", ".join(row["seconds"] for row in found if row["seconds"])
            lines.append(f"| {name} | {arm} | {cells[0]} | {cells[1]} | {seeds} | {taken} | {seconds} |")
    return "\n".join(lines)
