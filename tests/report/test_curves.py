# SPDX-License-Identifier: BSD-3-Clause
"""Curves: places that say the values, thinning that loses no extreme, and titles that cannot break out."""

from __future__ import annotations

import numpy as np
import pytest

from fastseg.report.curves import MOST_POINTS, Curve, draw_chart, running_mean, thinned
from tests.report.page import Page, curves_of


def test_places_say_the_values() -> None:
    steps, values = np.arange(0, 50, 7.0), np.array([0.9, 0.5, 0.7, 0.2, 0.25, -0.1, 0.0, 0.3])
    chart = draw_chart("dice", [Curve("dice", steps, values), Curve("iou", steps, values / 2)], steps=60)
    first, second = curves_of(chart, "dice")
    for (x, y), expected in ((first, values), (second, values / 2)):
        assert np.allclose(x, steps, atol=0.01 * 60 / 390 * 60)
        assert np.allclose(y, expected, atol=0.005 * 1.1 / 184 * 2)
    text = Page(chart).text
    assert "step 21: 0.2" in text  # under the mouse
    assert "dice" in text
    assert "iou" in text


def test_long_curves_are_thinned_to_points_of_theirs_with_every_extreme() -> None:
    rng = np.random.default_rng(0)
    x = np.arange(100_000.0)
    y = rng.normal(size=len(x))
    y[31_337], y[77_777] = 50.0, -50.0
    kept_x, kept_y = thinned(x, y)
    assert len(kept_x) <= MOST_POINTS
    assert np.array_equal(y[kept_x.astype(int)], kept_y)
    assert {31_337.0, 77_777.0, 0.0, 99_999.0} <= set(kept_x)
    assert (np.diff(kept_x) > 0).all()
    short = thinned(x[:MOST_POINTS], y[:MOST_POINTS])
    assert np.array_equal(short[0], x[:MOST_POINTS])
    chart = draw_chart("loss", [Curve("loss", x, y, smooth=True)])
    assert len(chart) < 30_000
    assert [len(points[0]) <= MOST_POINTS for points in curves_of(chart, "loss")] == [True, True]


def test_the_running_mean() -> None:
    assert running_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1.0, 2.0, 4.0, 6.0]


def test_what_is_not_finite_is_left_out() -> None:
    steps = np.arange(4.0)
    chart = draw_chart("loss", [Curve("loss", steps, np.array([1.0, np.nan, np.inf, 2.0]))])
    ((x, _),) = curves_of(chart, "loss")
    assert np.allclose(x, [0, 3], atol=0.05)
    assert draw_chart("loss", [Curve("loss", steps, np.full(4, np.nan))]) == ""
    assert draw_chart("loss", [Curve("loss", np.array([]), np.array([]))]) == ""


@pytest.mark.parametrize("value", [0.0, 1.0, -3e-9, 1e12])
def test_constants_and_single_points(value: float) -> None:
    ((_, y),) = curves_of(draw_chart("m", [Curve("m", np.array([5.0]), np.array([value]))]), "m")
    assert np.allclose(y, value, atol=abs(value) * 1e-2 + 1e-2)


def test_a_peak_far_above_the_rest_gets_a_logarithmic_scale() -> None:
    y = np.array([1000.0, 1.0, 0.5, 0.4, 0.3])
    chart = draw_chart("loss", [Curve("loss", np.arange(5.0), y)])
    assert "Logarithmic scale" in chart
    ((_, shown),) = curves_of(chart, "loss")
    assert np.allclose(10**shown, y, rtol=1e-3)


def test_the_chosen_step_and_a_level_are_marked() -> None:
    curve = Curve("target_solidity", np.arange(0.0, 101, 20), np.linspace(0.4, 0.8, 6))
    chart = draw_chart("target_solidity", [curve], steps=100, chosen=40, level=("source", 0.9))
    page = Page(chart)
    line = next(a for a in page.all("line") if a.get("class") == "chosen")
    assert float(line["x1"] or 0) == pytest.approx(58 + 0.4 * 390)
    assert "chosen: 40" in page.text
    assert "source 0.9" in page.text
    level = next(a for a in page.all("line") if a.get("class") == "level")
    top = min(float(a["cy"] or 0) for a in page.all("circle"))
    assert float(level["y1"] or 0) < top  # above all of the curve, and within the frame
    assert float(level["y1"] or 0) > 12


def test_names_are_escaped() -> None:
    evil = '<b onmouseover="x">&'
    page = Page(
        draw_chart(evil, [Curve(evil, np.arange(3.0), np.arange(3.0))] * 2, note=evil, level=(evil, 1.0))
    )
    assert not page.all("b")
    assert page.text.count(evil) >= 4
