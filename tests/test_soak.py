# SPDX-License-Identifier: BSD-3-Clause
"""What tools.soak calls flat, and a round of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastseg.data.phantoms import write_phantoms
from tools.soak import grown, measure, one_round


def rows(**of_round: object) -> list[dict[str, float]]:
    values = {"memory_mib": lambda i: 500, "open_files": lambda i: 20, "threads": lambda i: 4, **of_round}
    return [{name: value(i) for name, value in values.items()} for i in range(33)]


@pytest.mark.parametrize(
    ("of_round", "told"),
    [
        ({}, []),
        ({"memory_mib": lambda i: 300 + 100 * min(i, 2) + i % 5}, []),  # a warm-up, and noise
        ({"memory_mib": lambda i: 500 + 3 * i}, ["memory_mib"]),
        ({"open_files": lambda i: 20 + i // 4}, ["open_files"]),
        ({"threads": lambda i: 4 + i}, ["threads"]),
    ],
)
def test_growth_is_told_from_noise(of_round: dict, told: list[str]) -> None:
    found = grown(rows(**of_round))
    assert [text.split(" grew ")[0] for text in found] == told


def test_few_rounds_tell_nothing() -> None:
    assert "too few" in grown(rows()[:5])[0]


@pytest.mark.long
def test_a_round(tmp_path: Path) -> None:
    write_phantoms(str(tmp_path / "phantoms.h5"), (16, 64, 64), {"train": 0, "test": 1})
    one_round(str(tmp_path), resident=False, device="cpu")
    assert not (tmp_path / "run").exists()
    assert set(measure(0, 0.0)) >= {"memory_mib", "open_files", "threads"}
