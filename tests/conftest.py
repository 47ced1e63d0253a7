# SPDX-License-Identifier: BSD-3-Clause
"""Options and fixtures of all tests."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run tests that take minutes or gigabytes")
    parser.addoption("--data", type=Path, help="folder of the sample data sets, such as em_lucchi/train.h5")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: needs --slow"))


@pytest.fixture
def sample(request: pytest.FixtureRequest):
    """``sample("em_lucchi/train.h5")``: the path of a sample data file, or a skip that names it."""

    def find(name: str) -> Path:
        folder = request.config.getoption("--data")
        if folder is None or not (folder / name).exists():
            pytest.skip(f"sample data {name} absent: give its folder with --data")
        return folder / name

    return find
