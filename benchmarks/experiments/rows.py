# SPDX-License-Identifier: BSD-3-Clause
"""The results of an experiment: a CSV to which every finished run adds a row, so that a call goes on after a kill."""

import csv
import fcntl
import subprocess
from pathlib import Path


def commit():
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout.strip()


def read(path):
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def add(path, row, columns):
    """A row more; the file is locked, as several calls may have one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if file.seek(0, 2) == 0:
            writer.writeheader()
        writer.writerow({column: row[column] for column in columns})
