# SPDX-License-Identifier: BSD-3-Clause
"""Curves as inline SVG: no script, text that can be selected, colours that can be read on light and dark ground."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 460, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 34

# More points than that no screen shows; each bin of a longer curve keeps its least and its greatest one.
MOST_POINTS = 400
# So many points can be told apart, and say their value under the mouse.
_MOST_DOTS = 60
# The running mean of a noisy curve is over this share of it.
_MEAN_OVER = 0.02
_LOGARITHMIC_FROM = 30.0


@dataclass(frozen=True)
class Curve:
    """y over x. smooth: draw it faintly, and its running mean above."""

    name: str
    x: np.ndarray
    y: np.ndarray
    smooth: bool = False


def thinned(x: np.ndarray, y: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most so many of the points, none moved: the least and the greatest of each bin, and both ends."""
    if len(x) <= most:
        return x, y
    edges = np.linspace(0, len(x), max((most - 2) // 2, 1) + 1).astype(np.int64)
    kept = {0, len(x) - 1}
    for low, high in itertools.pairwise(edges):
        kept |= {low + int(y[low:high].argmin()), low + int(y[low:high].argmax())}
    order = np.array(sorted(kept))
    return x[order], y[order]


def running_mean(y: np.ndarray, over: int) -> np.ndarray:
    """The mean of up to ``over`` values that end with each."""
    sums = np.concatenate(([0.0], np.cumsum(y, dtype=np.float64)))
    last = np.arange(1, len(y) + 1)
    first = np.maximum(last - over, 0)
    return (sums[last] - sums[first]) / (last - first)


def draw_chart(
    title: str,
    curves: Sequence[Curve],
    *,
    steps: int | None = None,
    chosen: int | None = None,
    level: tuple[str, float] | None = None,
    note: str = "",
) -> str:
    """An HTML figure of the curves over steps 0 .. ``steps``. chosen: a step to mark. level: a name and a value to
    draw across. Empty where there is no finite value."""
    curves = [_finite(curve) for curve in curves]
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return ""
    scale = _Scale(curves, steps or 0, level)
    parts = [_axes(scale)]
    if level is not None:
        y = scale.y(level[1])
        parts.append(f'<line class="level" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{_LEFT + 4}" y="{y + (-4 if y > _TOP + 14 else 12):.1f}">'
            f"{escape(level[0])} {_number(level[1])}</text>"
        )
    if chosen is not None:
        x = scale.x(chosen)
        parts.append(f'<line class="chosen" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM}"/>')
        # Clear of the curves, of the word "step" and of the right border.
        middle = min(max(x, _LEFT + 75), _WIDTH - _RIGHT - 36)
        parts.append(
            f'<text class="mark" x="{middle:.1f}" y="{_HEIGHT - 4}" text-anchor="middle">chosen: {chosen}</text>'
        )
    parts += [_line(curve, scale, number) for number, curve in enumerate(curves)]
    legend = "".join(
        f'<span class="key c{number}">{escape(curve.name)}</span> '
        for number, curve in enumerate(curves)
        if len(curves) > 1
    )
    said = f"{title}: " + "; ".join(f"{c.name} from {_number(c.y[0])} to {_number(c.y[-1])}" for c in curves)
    left_out = " Logarithmic scale." if scale.logarithmic else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)} {legend}'
        f'<span class="note">{escape(note)}{left_out}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(said)}"'
        f' data-x="{scale.x0:g} {scale.x1:g}" data-y="{scale.y0!r} {scale.y1!r}">{"".join(parts)}</svg></figure>\n'
    )


class _Scale:
    """Steps and values to places in the picture."""

    def __init__(self, curves: Sequence[Curve], steps: int, level: tuple[str, float] | None) -> None:
        values = np.concatenate([curve.y for curve in curves] + ([[level[1]]] if level else []))
        self.x0 = 0.0
        self.x1 = max(float(steps), *(float(curve.x[-1]) for curve in curves), 1.0)
        low, high = float(values.min()), float(values.max())
        typical = float(np.median(values))
        self.logarithmic = low > 0 and high > _LOGARITHMIC_FROM * typical
        if self.logarithmic:
            low, high = math.log10(low), math.log10(high)
        room = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
        self.y0, self.y1 = low - room, high + room

    def x(self, step: float) -> float:
        return _LEFT + (step - self.x0) / (self.x1 - self.x0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        shown = math.log10(value) if self.logarithmic else value
        return _HEIGHT - _BOTTOM - (shown - self.y0) / (self.y1 - self.y0) * (_HEIGHT - _BOTTOM - _TOP)

    def y_ticks(self) -> list[float]:
        if not self.logarithmic:
            return _ticks(self.y0, self.y1)
        powers = range(math.ceil(self.y0), math.floor(self.y1) + 1)
        return [10.0**p for p in powers] or [10.0**self.y0, 10.0**self.y1]


def _axes(scale: _Scale) -> str:
    parts = []
    for value in scale.y_ticks():
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for value in _ticks(scale.x0, scale.x1):
        parts.append(
            f'<text x="{scale.x(value):.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{_number(value)}</text>'
        )
    base = _HEIGHT - _BOTTOM
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{base}" x2="{_WIDTH - _RIGHT}" y2="{base}"/>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 4}">step</text>')
    return "".join(parts)


def _line(curve: Curve, scale: _Scale, number: int) -> str:
    many = len(curve.x) > _MOST_DOTS
    faint = curve.smooth and many
    lines = [(curve.y, "raw" if faint else "line")]
    if faint:
        lines.append((running_mean(curve.y, max(int(_MEAN_OVER * len(curve.y)), 10)), "line"))
    parts = []
    for values, kind in lines:
        x, y = thinned(curve.x, values)
        points = " ".join(f"{scale.x(a):.2f},{scale.y(b):.2f}" for a, b in zip(x, y, strict=True))
        parts.append(f'<polyline class="{kind} c{number}" points="{points}"/>')
    if not many:
        parts += [
            f'<circle class="c{number}" cx="{scale.x(a):.2f}" cy="{scale.y(b):.2f}" r="2.5">'
            f"<title>step {a:.0f}: {b:.6g}</title></circle>"
            for a, b in zip(curve.x, curve.y, strict=True)
        ]
    return "".join(parts)


def _finite(curve: Curve) -> Curve:
    kept = np.isfinite(curve.y) & np.isfinite(curve.x)
    return Curve(curve.name, curve.x[kept], curve.y[kept], curve.smooth)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round values within [low, high]."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    unit = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
    return [round(i * unit, 12) for i in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 and value == round(value) else f"{value:.4g}"
