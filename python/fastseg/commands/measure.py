# SPDX-License-Identifier: BSD-3-Clause
"""fastseg measure: numbered objects as a table for spreadsheets."""

from __future__ import annotations

import csv
import io
import os

import numpy as np

from fastseg.commands.infer import parse_voxel_size
from fastseg.data.volumes import open_volume
from fastseg.errors import InputError
from fastseg.objects import measure_objects
from fastseg.train.checkpoint import write_atomically
from fastseg.train.inputs import with_voxel_size


def measure_file(
    objects: str,
    output: str,
    *,
    raw: str | None = None,
    axes: str | None = None,
    raw_axes: str | None = None,
    voxel_size: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write the table of ``measure_objects`` to ``output``, a CSV file; returns what to say, a line each."""
    if not output.lower().endswith(".csv"):
        raise InputError(f"--output must end in .csv, got {output}")
    if os.path.exists(output) and not overwrite:
        raise InputError(f"--output {output} exists: add --overwrite to replace it, or name another")
    labels = with_voxel_size(open_volume(objects, axes, ids=True), parse_voxel_size(voxel_size))
    table = measure_objects(labels, open_volume(raw, raw_axes) if raw is not None else None)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*(_printed(column) for column in table.values()), strict=True))
    write_atomically(output, text.getvalue().encode())
    count = len(table["id"])
    lines = [f"wrote {output}: {count:,} object{'' if count == 1 else 's'}"]
    if count == 1:
        lines.append(
            f"{objects} holds one id, so all of it is one object: fastseg predict --what instances gives each a number"
        )
    if not any(name.endswith("_um") for name in table):
        lines.append(f"{objects} states no voxel size: lengths are in voxels; --voxel-size Z,Y,X gives it")
    return lines


def _printed(column: np.ndarray) -> list[str]:
    return [f"{value:.6g}" if isinstance(value, float) else str(value) for value in column.tolist()]
