# SPDX-License-Identifier: BSD-3-Clause
"""fastseg train's last act and fastseg report: the page of a run."""

from __future__ import annotations

import glob
import os
import sys

from fastseg.methods.registry import method_of, train
from fastseg.methods.runs import longer
from fastseg.report.page import render_page
from fastseg.report.records import Record, read_record
from fastseg.report.samples import Sample, draw_samples
from fastseg.train.checkpoint import RunFolder, write_atomically
from fastseg.train.config import Config
from fastseg.train.sessions import SESSIONS_FILE

REPORT_FILE = "report.html"


def train_and_report(config: Config, *, resume: bool = False, quiet: bool = False) -> RunFolder:
    """Train, then let the first process write the report while the others leave. A training that failed or was asked
    to stop has one too, without sample predictions, as it may be short of time or memory. What goes wrong with the
    report is said in a line, and the training counts all the same."""
    first = os.environ.get("RANK", "0") == "0"
    before = _sessions(config.output)
    done = RunFolder(config.output).checkpoints()
    if first and not quiet and resume and done and done[-1][0] >= config.train.steps:
        print(f"{config.output} has done all of its {config.train.steps} steps; {longer(config)}")
    try:
        run = train(config, resume=resume, quiet=quiet)
    except (Exception, KeyboardInterrupt):
        if first and _sessions(config.output) != before:  # a refusal leaves the page of an earlier run alone
            _try_report(config.output, samples=False, quiet=quiet)
        raise
    if first:
        _try_report(run.path, samples=method_of(config).segments(config), quiet=quiet)
    return run


def write_report(path: str, *, samples: bool = True) -> str:
    """Write ``report.html`` of a run, also of one that has not ended; returns its path. InputError where the folder
    holds no run, or cannot be written."""
    run = RunFolder(path)
    record = read_record(run)
    notes: list[str] = []
    found = _samples(record, notes) if samples else {}
    target = run.file(REPORT_FILE)
    write_atomically(target, render_page(record, found, notes).encode("utf-8", errors="replace"))
    return target


def _samples(record: Record, notes: list[str]) -> dict[str, list[Sample]]:
    if not record.folder.checkpoints():
        notes.append("no sample predictions: there is no checkpoint yet")
        return {}
    try:
        return draw_samples(record.folder, notes)
    except Exception as error:  # the curves are worth a page without pictures
        notes.append(f"no sample predictions: {' '.join(str(error).split())[:300] or type(error).__name__}")
        return {}


def _try_report(path: str, *, samples: bool, quiet: bool) -> None:
    try:
        written = write_report(path, samples=samples)
    except (Exception, KeyboardInterrupt) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        print(f"fastseg: no report: {said}; fastseg report {path} tries again", file=sys.stderr)
        return
    if not quiet:
        print(f"report: {written}", flush=True)


def _sessions(path: str) -> dict[str, int]:
    """The records of sessions in a run and its phases, with when each was written."""
    folder = glob.escape(path)
    found = [
        *glob.glob(os.path.join(folder, SESSIONS_FILE)),
        *glob.glob(os.path.join(folder, "*", SESSIONS_FILE)),
    ]
    return {file: os.stat(file).st_mtime_ns for file in found}
