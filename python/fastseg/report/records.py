# SPDX-License-Identifier: BSD-3-Clause
"""What a run's folder says of the run, whatever of it is there: of one that ended, goes on, failed or was killed."""

from __future__ import annotations

import glob
import json
import math
import os
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

from fastseg.errors import InputError
from fastseg.train.checkpoint import RunFolder, load_checkpoint, read_json
from fastseg.train.sessions import read_sessions

Columns = dict[str, np.ndarray]

# Files may have notes on what may be wrong, as pretraining and patch_contrast leave them.
_MOST_NOTES = 20
# A run in several phases keeps each in a folder of its own.
_MOST_PHASES = 8


@dataclass
class Record:
    """``config`` as the YAML says it, {} where there is none; ``log`` and ``validations`` as columns, "step" among
    them; ``chosen`` the step whose weights predict, None before the first checkpoint, ``why`` in words."""

    folder: RunFolder
    config: dict[str, Any]
    log: Columns
    validations: Columns
    sessions: list[dict[str, Any]]
    source_morphology: dict[str, Any]
    evaluation: dict[str, Any]
    chosen: int | None
    why: str
    notes: list[str] = field(default_factory=list)
    phases: list[Record] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps that were logged."""
        return int(self.log["step"][-1]) + 1 if len(self.log["step"]) else 0

    @property
    def planned(self) -> int:
        return int(self.value("train", "steps") or 0)

    def value(self, *keys: str) -> Any:
        """A value of the configuration; None where it or a section on the way is missing."""
        here: Any = self.config
        for key in keys:
            here = here.get(key) if isinstance(here, dict) else None
        return here


def read_record(run: RunFolder) -> Record:
    """InputError where the folder holds nothing of a run."""
    record = _read(run)
    folders = sorted(glob.glob(os.path.join(glob.escape(run.path), "*", "config.yaml")))
    record.phases = [_read(RunFolder(os.path.dirname(path))) for path in folders[:_MOST_PHASES]]
    if not (record.config or record.steps or record.phases):
        raise InputError(f"{run.path} holds no run: neither config.yaml nor log.jsonl")
    return record


def _read(run: RunFolder) -> Record:
    notes: list[str] = []
    config = _yaml(run.file("config.yaml"), notes)
    log, validations = read_columns(run.file("log.jsonl")), read_columns(run.file("validation.jsonl"))
    chosen, why = _chosen(run, config, validations, notes)
    for path in sorted(glob.glob(os.path.join(glob.escape(run.path), "*.json"))):
        stated = _json(path).get("notes")
        notes += [str(note) for note in stated[:_MOST_NOTES]] if isinstance(stated, list) else []
    return Record(
        run,
        config,
        log,
        validations,
        read_sessions(run),
        _json(run.file("source_morphology.json")),
        _json(run.file("evaluation.json")),
        chosen,
        why,
        notes,
    )


def read_columns(path: str) -> Columns:
    """The numbers of a file of JSON lines by name, float64, NaN where a row has none; "step" is always there.

    A line that is cut off, as by a kill, is left out. Memory is 8 bytes for each number.
    """
    columns: dict[str, array] = {"step": array("d")}
    rows = 0
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                row = _row(line)
                if row is None:
                    continue
                for name in [name for name in row if name not in columns]:
                    columns[name] = array("d", [math.nan]) * rows
                for name, column in columns.items():
                    column.append(row.get(name, math.nan))
                rows += 1
    return {name: np.array(column) for name, column in columns.items()}


def _row(line: str) -> dict[str, float] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        return None
    numbers = {name: math.nan if value is None else value for name, value in row.items()}
    return {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}


def _chosen(
    run: RunFolder, config: dict[str, Any], validations: Columns, notes: list[str]
) -> tuple[int | None, str]:
    found = run.checkpoints()
    newest = found[-1][0] if found else None
    predict = config.get("predict")
    asked = predict.get("checkpoint", "best") if isinstance(predict, dict) else "best"
    if not os.path.exists(run.best):
        return newest, "the newest checkpoint: nothing was validated" if found else ""
    try:
        best = load_checkpoint(run.best)
    except InputError as error:
        notes.append(str(error))
        return newest, "the newest checkpoint"
    measure = best.get("measure")
    values = validations.get(str(measure), np.array([]))
    looks = int(np.isfinite(values).sum())
    value = best.get("measures", {}).get(measure, math.nan)
    extreme = "lowest" if best.get("lower_is_better") else "highest"
    which = f"the {extreme} {measure}, {value:.6g}, of {looks} looks" if looks else "the best in validation"
    if asked == "newest":
        return newest, f"the newest, as predict.checkpoint says; step {best['step']} had {which}"
    return int(best["step"]), which


def _yaml(path: str, notes: list[str]) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
    except FileNotFoundError:
        return {}
    except Exception as error:  # as in config_file.py
        notes.append(f"{path} is no readable YAML: {' '.join(str(error).split())}")
        return {}
    return values if isinstance(values, dict) else {}


def _json(path: str) -> dict[str, Any]:
    values = read_json(path)
    return values if isinstance(values, dict) else {}
