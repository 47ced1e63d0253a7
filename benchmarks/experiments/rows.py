# SPDX-License-Identifier: BSD-3-Clause
"""The results of an experiment: a CSV to which every finished run adds a row, so that a call goes on after a kill."""

import csv
import fcntl
import importlib
import subprocess
from pathlib import Path

import torch


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


def parse(parser, name, results):
    """The options of ``run``, with what all experiments on several sets take; None where ``show`` was asked for, whose
    table and plot are in ``<name>_report``."""
    parser.add_argument("what", choices=("run", "show"))
    parser.add_argument("--root", type=Path, help="the folder of the sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--plot", type=Path, help="of show: a PNG")
    parser.add_argument("--threads", type=int, help="of torch, by default all cores")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("build/experiments") / name, help="(%(default)s)")
    parser.add_argument("--results", type=Path, default=results, help="(%(default)s)")
    options = parser.parse_args()
    if options.what == "show":
        report = importlib.import_module(f"{name}_report")
        print(report.table(read(options.results)))
        if options.plot:
            print(report.plot(read(options.results), options.plot))
        return None
    if options.root is None:
        parser.error("run needs --root, the folder of the sets")
    options.root, options.folder = options.root.resolve(), options.folder.resolve()
    if options.threads:
        torch.set_num_threads(options.threads)
    return options
