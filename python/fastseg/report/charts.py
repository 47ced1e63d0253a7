# SPDX-License-Identifier: BSD-3-Clause
"""Which curves the page of a run has, and what is marked in them."""

from __future__ import annotations

import numpy as np

from fastseg.report.curves import Curve, draw_chart
from fastseg.report.records import Columns, Record

# Of the rest of what was logged: a method's own scalars.
_MOST_CHARTS = 24
_COLOURS = 6

_REPORTED = ("target_dice", "target_iou")


def draw_charts(record: Record) -> str:
    """HTML figures; empty where nothing was logged."""
    log, validations = record.log, record.validations
    rates = [name for name in log if name.endswith("learning_rate")]
    # Of several networks: their losses in one chart, beside that of the sum.
    losses = sorted((name for name in log if name.endswith("loss")), key=lambda name: name != "loss")
    reported = [name for name in _REPORTED if name in validations]
    prop = _property(record)
    measures = [name for name in validations if name not in ("step", *_REPORTED, prop)]
    steps = max(record.steps, int(validations["step"].max()) if len(validations["step"]) else 0)

    def chart(title: str, names: list[str], columns: Columns, **options: object) -> str:
        smooth = columns is log and bool(options.pop("smooth", True))
        curves = [Curve(name, columns["step"], columns[name], smooth) for name in names[:_COLOURS]]
        return draw_chart(title, curves, steps=steps, **options)  # type: ignore[arg-type]

    chosen = {"chosen": record.chosen}
    parts = [chart("Training loss", losses, log, note="of data.train, the source")]
    parts += [chart(_title(name), [name], validations, **chosen) for name in measures]
    if prop in validations:
        level = _source_level(record)
        parts.append(chart(_title(prop), [prop], validations, level=level, **chosen))
    if reported:
        title = "Target against its labels"
        parts.append(chart(title, reported, validations, note="for the record, decided nothing", **chosen))
    parts.append(chart("Learning rate", rates, log, smooth=False))
    rest = [name for name in log if name not in ("step", *losses, *rates)]
    parts += [chart(name, [name], log) for name in rest]
    drawn = [part for part in parts if part]
    more = f"<p>{len(drawn) - _MOST_CHARTS} more in tensorboard/.</p>" if len(drawn) > _MOST_CHARTS else ""
    return f'<div class="charts">{"".join(drawn[:_MOST_CHARTS])}</div>{more}' if drawn else ""


def _title(name: str) -> str:
    return {
        "dice": "Validation: dice",
        "loss": "Validation: loss",
        "morphology_distance": "Morphology: distance between target and source",
    }.get(name, name if name.startswith("target_") else f"Validation: {name}")


def _property(record: Record) -> str:
    return f"target_{record.source_morphology.get('property')}"


def _source_level(record: Record) -> tuple[str, float] | None:
    """The property of the labels of data.train, the mean over classes as the target's is."""
    values = record.source_morphology.get("values")
    known = isinstance(values, list) and values and all(isinstance(v, int | float) for v in values)
    return ("source", float(np.mean(values))) if known else None
