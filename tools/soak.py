# SPDX-License-Identifier: BSD-3-Clause
"""Short trainings and predictions, one after another in one process: memory, open files and threads stay flat.

    python -m tools.soak [--minutes 60] [--csv FILE]

Prints a row per round. Exit code 1 if the last third of the rounds holds more than the first third after the warm-up.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

_CONFIG = """\
method: supervised
output: {folder}/run
data:
  train: [{{raw: "phantoms.h5:/train/raw", labels: "phantoms.h5:/train/somata"}}]
  validation: [{{raw: "phantoms.h5:/test/raw", labels: "phantoms.h5:/test/somata"}}]
  test: [{{raw: "phantoms.h5:/test/raw", labels: "phantoms.h5:/test/somata"}}]
  patch: [8, 32, 32]
  resident: {resident}
network: {{width: 2, pooling: [[1, 2, 2], 2]}}
train: {{steps: 20, batch: 2, checkpoint_every: 10, validate_every: 10, device: {device}}}
"""

_WARM_UP = 3  # rounds: caches of allocators, of torch's threads and of imported modules fill in these
_COLUMNS = ("round", "seconds", "memory_mib", "open_files", "threads")
_SLACK = {"memory_mib": 32, "open_files": 1, "threads": 1}
Row = dict[str, float]


def measure(number: int, begun: float) -> Row:
    gc.collect()
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "round": number,
        "seconds": round(time.monotonic() - begun, 1),
        "memory_mib": round(resident / 2**20, 1),
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": max(threading.active_count(), len(os.listdir("/proc/self/task"))),
    }


def grown(rows: Sequence[Row]) -> list[str]:
    """What the last third of the rounds holds more of than the first third after the warm-up, by their medians."""
    after = rows[_WARM_UP:]
    third = len(after) // 3
    if third == 0:
        return [f"{len(rows)} rounds are too few to tell: {_WARM_UP + 3} are needed"]
    told = []
    for name, slack in _SLACK.items():
        early, late = (statistics.median(r[name] for r in part) for part in (after[:third], after[-third:]))
        if late > early + slack:
            told.append(f"{name} grew from {early:g} to {late:g}")
    return told


def one_round(folder: str, resident: bool, device: str) -> None:
    """Train, predict, evaluate, and remove it all."""
    from fastseg.commands.infer import evaluate_run, predict_run
    from fastseg.commands.report import train_and_report
    from fastseg.methods.config_file import load_config

    path = os.path.join(folder, "run.yaml")
    with open(path, "w", encoding="utf-8") as file:
        file.write(_CONFIG.format(folder=folder, resident=str(resident).lower(), device=device))
    run = train_and_report(load_config(path), quiet=True)
    predict_run(run.path, quiet=True)
    evaluate_run(run.path)
    shutil.rmtree(run.path)


def main() -> int:
    from fastseg.data.phantoms import write_phantoms

    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--csv", help="write the rows to this file, too")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rows: list[Row] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastseg-soak-") as folder:
        write_phantoms(os.path.join(folder, "phantoms.h5"), (16, 64, 64), {"train": 0, "test": 1})
        print(*_COLUMNS, flush=True)
        while time.monotonic() - begun < 60 * options.minutes:
            one_round(folder, resident=len(rows) % 2 == 0, device=options.device)
            rows.append(measure(len(rows), begun))
            print(*rows[-1].values(), flush=True)
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    told = grown(rows)
    print("flat" if not told else "; ".join(told))
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
