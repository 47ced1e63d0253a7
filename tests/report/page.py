# SPDX-License-Identifier: BSD-3-Clause
"""A page as the tests read it: its tags, its text, and the values that its curves show."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import yaml

from tests.project import fastseg

HELD_OUT = "data.validation=[{raw: phantoms.h5:/raw, labels: phantoms.h5:/somata, region: {z: [16, 20]}}]"
SHORT = ["train.steps=8", "train.checkpoint_every=4", "train.validate_every=4", "train.precision=fp32"]

VOID = {"meta", "br", "img"}  # of HTML; in SVG all others close themselves with a slash


class Page(HTMLParser):
    """Fails where a tag is closed that is not open, or left open."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source, self.open, self.words = text, [], []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert tag not in VOID
        assert self.open[-1:] == [tag], f"</{tag}> within {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def require_self_contained(self) -> None:
        """Nothing is fetched, nothing runs."""
        assert not {name for name, _ in self.tags} & {"script", "link", "iframe", "object", "embed", "audio"}
        for name, attributes in self.tags:
            assert not [key for key in attributes if key.startswith("on")]
            for key in ("src", "href"):
                value = attributes.get(key)
                assert value is None or value.startswith(("data:image/png;base64,", "#")), (name, value)
        assert "url(" not in self.source
        assert "@import" not in self.source


def read_page(run: Path) -> Page:
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    page.require_self_contained()
    return page


def curves_of(page: str, title: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(steps, values) of the curves of the chart of this title, as places in the picture say them."""
    figure = next(
        f for f in re.findall(r'<figure class="chart">.*?</figure>', page, re.S) if f">{title} " in f
    )
    (x0, x1), (y0, y1) = (map(float, re.search(rf'data-{a}="(.*?)"', figure)[1].split()) for a in "xy")
    found = []
    for points in re.findall(r'<polyline class="[^"]*" points="(.*?)"', figure):
        at = np.array([[float(v) for v in point.split(",")] for point in points.split()])
        # The frame that is drawn: left, right, top, bottom.
        left, right, top, bottom = 58, 448, 12, 196
        steps = x0 + (at[:, 0] - left) / (right - left) * (x1 - x0)
        found.append((steps, y0 + (bottom - at[:, 1]) / (bottom - top) * (y1 - y0)))
    return found


def train(config: object, *overrides: object, code: int = 0) -> Path:
    done = fastseg("train", config, *overrides)
    assert done.returncode == code, done.stderr
    output = next((str(o)[7:] for o in overrides if str(o).startswith("output=")), None)
    return Path(output or yaml.safe_load(Path(str(config)).read_text())["output"])


def logged(run: Path, name: str, file: str = "log.jsonl") -> np.ndarray:
    rows = [json.loads(line) for line in (run / file).open()]
    return np.array([[row["step"], row[name]] for row in rows if name in row])
