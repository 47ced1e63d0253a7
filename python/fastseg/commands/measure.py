# SPDX-License-Identifier: BSD-3-Clause
"""fastseg measure: numbered objects as a table for spreadsheets."""

from __future__ import annotations

import csv
import io
import os

import numpy as np

from fastseg.commands.infer import parse_voxel_size
from fastseg.data.images import image_paths
from fastseg.data.pairs import file_by_file
from fastseg.data.volumes import is_image_folder, open_volume
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
    stack: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Write the table of ``measure_objects`` to ``output``, a CSV file; returns what to say, a line each.

    Of a folder each file is measured by itself, as ids begin anew in each, and named in a first column, ``file``;
    ``stack``: its files are slices of one volume.
    """
    if not output.lower().endswith(".csv"):
        raise InputError(f"--output must end in .csv, got {output}")
    if os.path.exists(output) and not overwrite:
        raise InputError(f"--output {output} exists: add --overwrite to replace it, or name another")
    apart = is_image_folder(objects) and not stack
    pairs: list[tuple[str, str | None]]
    if raw is not None:
        pairs = [*file_by_file(objects, raw, "raw")] if apart else [(objects, raw)]
    else:
        pairs = [(path, None) for path in (image_paths(objects) if apart else [objects])]
    text, count, table = io.StringIO(), 0, {}
    writer = csv.writer(text, lineterminator="\n")
    for path, image in pairs:
        labels = with_voxel_size(open_volume(path, axes, ids=True), parse_voxel_size(voxel_size))
        before, table = (
            table,
            measure_objects(labels, None if image is None else open_volume(image, raw_axes)),
        )
        file = [os.path.basename(path)] if apart else []
        if not before:
            writer.writerow(["file"] * apart + [*table])
        elif before.keys() != table.keys():
            other = ", ".join(sorted(before.keys() ^ table.keys()))
            raise InputError(
                f"{path} does not go into one table with the files before: not both have {other}"
            )
        writer.writerows([*file, *row] for row in zip(*(_printed(c) for c in table.values()), strict=True))
        count += len(table["id"])
    write_atomically(output, text.getvalue().encode())
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
