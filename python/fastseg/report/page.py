# SPDX-License-Identifier: BSD-3-Clause
"""The page of a run: one HTML file without scripts or anything fetched, to read, keep and send by itself."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
import yaml

from fastseg.report.charts import draw_charts
from fastseg.report.pictures import class_colour, data_uri, grey_png, outline_png
from fastseg.report.records import Record
from fastseg.report.samples import Sample
from fastseg.report.style import STYLE

_TRUTH, _PREDICTION = (26, 163, 74), (255, 140, 0)
# Figures of the folder are in the page while it stays below this, to be sent by mail; others are named alone.
_PAGE_BYTES, _LONGEST_CONFIG = 2_000_000, 100_000
_MOST_VOLUMES = 12

Row = tuple[str, Any]


def render_page(record: Record, samples: dict[str, list[Sample]], notes: Sequence[str] = ()) -> str:
    """The HTML of a run. samples: by the part of the data they are of; notes: what else to say."""
    name = os.path.basename(os.path.abspath(record.folder.path))
    above = [
        f"<h1>{escape(name)}</h1>",
        _facts(record),
        _notes([*_alarms(record), *record.notes, *notes]),
        _results(record),
        _evaluation(record),
        f"<h2>Curves</h2>{draw_charts(record) or '<p>No step was logged.</p>'}",
        _samples(record, samples),
    ]
    below = [*(_phase(phase) for phase in record.phases), _configuration(record)]
    room = _PAGE_BYTES - sum(map(len, [*above, *below]))
    parts = [*above, _figures(record, room), *below]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}: fastseg</title><style>{STYLE}</style>"
    )
    body = "\n".join(part for part in parts if part)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _phase(record: Record) -> str:
    """A phase of the run that is a run of its own, in a folder within."""
    name = os.path.basename(record.folder.path)
    results = _results(record).replace("h2>", "h3>")
    parts = [_facts(record), _notes([*_alarms(record), *record.notes]), results, draw_charts(record)]
    return f"<h2>Phase: {escape(name)}</h2>\n" + "\n".join(part for part in parts if part)


def _facts(record: Record) -> str:
    value, sessions = record.value, record.sessions
    last = sessions[-1] if sessions else {}
    rows: list[Row] = [
        ("method", value("method")),
        ("training volumes", _volumes(value("data", "train"))),
        ("validation volumes", _volumes(value("data", "validation"))),
        ("target volumes", _volumes(value("data", "target"))),
        ("test volumes", _volumes(value("data", "test"))),
        ("network", _network(record)),
        ("seed", value("seed")),
        ("steps", _steps(record)),
        ("state", _state(record)),
        ("chosen", f"step {record.chosen}: {record.why}" if record.chosen is not None else None),
        ("begun", sessions[0].get("begun") if sessions else None),
        ("time", _time(sessions)),
        ("device", last.get("device") and f"{last['device']}, {last.get('processes', 1)} process(es)"),
        ("version", last.get("version") and f"fastseg {last['version']}, torch {last.get('torch')}"),
    ]
    shown = "".join(f"<dt>{escape(k)}</dt><dd>{_text(v)}</dd>" for k, v in rows if v not in (None, "", []))
    return f"<dl>{shown}</dl>"


def _text(value: Any) -> str:
    return "<br>".join(map(escape, value)) if isinstance(value, list) else escape(str(value))


def _volumes(entries: Any) -> list[str]:
    if not isinstance(entries, list):
        return []
    texts = []
    for entry in entries[:_MOST_VOLUMES]:
        stated = entry if isinstance(entry, dict) else {"raw": entry}
        more = [f"{k} {stated[k]}" for k in ("labels", "mask") if stated.get(k)]
        for key in ("annotated", "region"):
            values = stated.get(key)
            texts_of = values.items() if isinstance(values, dict) else ()
            said = " ".join(f"{k} {v}" for k, v in texts_of if v is not None)
            more += [f"{key} {said}"] if said else []
        texts.append(", ".join([str(stated.get("raw")), *more]))
    left = len(entries) - _MOST_VOLUMES
    return [*texts, f"and {left} more"] if left > 0 else texts


def _network(record: Record) -> str | None:
    network = record.value("network")
    if not isinstance(network, dict):
        return None
    return f"{network.get('kind')}, width {network.get('width')}, patch {record.value('data', 'patch')}"


def _steps(record: Record) -> str:
    if not record.planned:
        return f"{record.steps:,}"
    return f"{record.steps:,} of {record.planned:,}, batch {record.value('train', 'batch')}"


def _state(record: Record) -> str:
    if not record.sessions:
        return "ended" if 0 < record.planned <= record.steps else "not ended"
    last = record.sessions[-1]
    ended = last.get("ended")
    if ended is None:
        return "goes on, or was killed"
    resumed = f", in {len(record.sessions)} sessions" if len(record.sessions) > 1 else ""
    early = ", before all steps" if ended == "finished" and record.steps < record.planned else ""
    return f"{ended}{early}{resumed}" + (f": {last['why']}" if last.get("why") else "")


def _time(sessions: Sequence[dict[str, Any]]) -> str | None:
    known = [s["seconds"] for s in sessions if isinstance(s.get("seconds"), int | float)]
    if not known:
        return None
    seconds = sum(known)
    text = f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds:.0f} s"
    lost = len(sessions) - len(known)
    return text + (f", and {lost} session(s) without an end" if lost else "")


def _alarms(record: Record) -> list[str]:
    """What one should know before one believes the run."""
    found = []
    if record.sessions and record.sessions[-1].get("ended") == "failed":
        found.append(f"the training failed: {record.sessions[-1].get('why')}")
    for name, column in record.log.items():
        bad = int(np.count_nonzero(~np.isfinite(column)))
        if bad and name.endswith(("loss", "gradient_norm")):
            found.append(f"{name} was not finite in {bad} of {len(column)} steps")
    return found


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(notes))
    return f'<ul class="notes">{items}</ul>' if items else ""


def _results(record: Record) -> str:
    """The measures at the chosen step, and at the last one that has them."""
    steps = record.validations["step"]
    names = [name for name in record.validations if name != "step"]
    if not len(steps) or not names:
        return ""
    rows = [("last", len(steps) - 1)]
    at = np.flatnonzero(steps == (record.chosen if record.chosen is not None else -1))
    if len(at):
        rows.insert(0, ("chosen", int(at[-1])))
    head = "".join(f"<th>{escape(name)}{_for_the_record(name)}</th>" for name in names)
    body = "".join(
        f"<tr><th>{label}, step {int(steps[row]):,}</th>"
        + "".join(f"<td>{_number(record.validations[name][row])}</td>" for name in names)
        + "</tr>"
        for label, row in rows
    )
    return f'<h2>Results</h2><div class="wide"><table><tr><th></th>{head}</tr>{body}</table></div>'


def _for_the_record(name: str) -> str:
    return "<br><small>for the record</small>" if name in ("target_dice", "target_iou") else ""


def _evaluation(record: Record) -> str:
    names = ("dice", "iou", "precision", "recall")
    rows = "".join(
        f"<tr><th>{escape(volume)}</th>" + "".join(f"<td>{_number(s.get(n))}</td>" for n in names) + "</tr>"
        for volume, s in record.evaluation.items()
        if isinstance(s, dict)
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    table = f'<div class="wide"><table><tr><th>volume</th>{head}</tr>{rows}</table></div>'
    return f"<h2>Test volumes</h2>{table}" if rows else ""


def _number(value: Any) -> str:
    known = isinstance(value, int | float) and math.isfinite(value)
    return f"{value:.4g}" if known else "&ndash;"


def _samples(record: Record, samples: dict[str, list[Sample]]) -> str:
    if not any(samples.values()):
        return ""
    size = record.value("data", "voxel_size")
    at = f" Voxels are those of data.voxel_size, {size}." if size else ""
    numbered = [*enumerate((part, sample) for part, found in samples.items() for sample in found)]
    names = numbered[0][1][1].names
    picture = _picture if len(names) == 1 else _picture_of_classes
    pictures = "".join(picture(part, sample, number) for number, (part, sample) in numbered)
    shown = (
        "and with the outlines of the <b class='prediction'>prediction</b> of the chosen step and of the "
        "<b class='truth'>labels</b>."
    )
    if len(names) > 1:
        colours = ", ".join(
            f"<b style='color: rgb{class_colour(number)}'>{escape(name)}</b>"
            for number, name in enumerate(names)
        )
        shown = f"with the outlines of the labels, and with those of the prediction of the chosen step: {colours}."
    return (
        f"<h2>Samples</h2><p>As stored, {shown} Each was predicted by itself, so that its border may differ from what "
        f'fastseg predict writes.{escape(at)}</p><div class="row">{pictures}</div>'
    )


def _picture(part: str, sample: Sample, number: int) -> str:
    """The image, and again with both outlines on it."""
    overlays = [outline_png(sample.predicted, [_PREDICTION])]
    if sample.truth is not None:
        overlays.insert(0, outline_png(sample.truth & sample.known, [_TRUTH]))
    return _figure(part, sample, number, [[], overlays])


def _picture_of_classes(part: str, sample: Sample, number: int) -> str:
    """The image, again with the labels' outlines where there are labels, and again with those of the prediction."""
    colours = [class_colour(place) for place in range(len(sample.names))]
    panels = [[outline_png(sample.predicted, colours)]]
    if sample.truth is not None:
        panels.insert(0, [outline_png(sample.truth & sample.known, colours)])
    return _figure(part, sample, number, [[], *panels])


def _figure(part: str, sample: Sample, number: int, panels: Sequence[Sequence[str]]) -> str:
    """The image as often as there are panels, side by side, with what each lays over it."""
    h, w = sample.predicted.shape[1:]
    # In units of the wider side, stretched to the true proportions of a pixel.
    width, height = w * sample.pixel[1], h * sample.pixel[0]
    width, height = width / max(width, height) * 320, height / max(width, height) * 320
    size = f'width="{width:.1f}" height="{height:.1f}" preserveAspectRatio="none"'
    images = f'<image id="sample{number}" href="{grey_png(sample.image)}" {size}/>'
    for place, overlays in enumerate(panels):
        at = f'x="{place * (width + 8):.1f}"'
        images += f'<use href="#sample{number}" {at}/>' if place else ""
        images += "".join(f'<image href="{uri}" {at} {size}/>' for uri in overlays)
    dice = ", ".join(
        f"{escape(name)} {value:.3f}" if len(sample.names) > 1 else f"{value:.3f}"
        for name, value in zip(sample.names, sample.dice, strict=False)
    )
    return (
        f'<figure class="sample"><svg viewBox="0 0 {len(panels) * (width + 8) - 8:.1f} {height:.1f}" role="img" '
        f'aria-label="{escape(sample.title)}">{images}</svg>'
        f"<figcaption>{escape(part)}: {escape(sample.title)}. {f'Dice here {dice}' if dice else 'no labels here'}"
        "</figcaption></figure>"
    )


def _figures(record: Record, room: int) -> str:
    paths = sorted(
        glob.glob(os.path.join(glob.escape(record.folder.file("figures")), "*.png")), key=os.path.getsize
    )
    left, shown, named = 0.7 * room, [], []  # three bytes are four letters
    for path in paths:
        name = os.path.basename(path)
        size = os.path.getsize(path)
        if size > left:
            named.append(name)
            continue
        left -= size
        with open(path, "rb") as file:
            uri = data_uri(file.read())
        shown.append(
            f'<figure><img alt="{escape(name)}" src="{uri}"><figcaption>{escape(name)}</figcaption></figure>'
        )
    if not paths:
        return ""
    rest = f"<p>In figures/, too large for this page: {escape(', '.join(named))}.</p>" if named else ""
    return f"<h2>Figures</h2>{''.join(shown)}{rest}"


def _configuration(record: Record) -> str:
    if not record.config:
        return ""
    text = yaml.safe_dump(record.config, sort_keys=False)[:_LONGEST_CONFIG]
    return f"<details><summary>Configuration</summary><pre>{escape(text)}</pre></details>"
