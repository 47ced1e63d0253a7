# SPDX-License-Identifier: BSD-3-Clause
"""Options and fixtures of all tests."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Generator
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

import pytest

pytest_plugins = ["tests.time_limits"]

# Torch keeps compiled graphs on disk and takes no notice of an op's schema: one of another version of the ops would be
# taken for ours. Before torch is imported, and for the processes that tests start.
_SCHEMAS = (Path(__file__).parents[1] / "csrc" / "library.cpp").read_bytes()
os.environ.setdefault("TORCH_COMPILE_CACHE_KEY_TAG", hashlib.sha256(_SCHEMAS).hexdigest()[:16])

# With --skip-missing, what needs an absent package of the extra `train` is skipped and says so, for machines
# where nothing can be installed. Everywhere else an absent package is a failure.
SKIP_MISSING = "--skip-missing" in sys.argv
OPTIONAL = (
    *(
        "cc3d",
        "google_crc32c",
        "h5py",
        "hdf5plugin",
        "imagecodecs",
        "imageio",
        "matplotlib",
        "numcodecs",
        "pydantic",
        "pytest_timeout",
        "xdist",
    ),
    *("rich", "skimage", "tensorboard", "tensorstore", "tifffile", "typer", "yaml", "zarr"),
)

if SKIP_MISSING and importlib.util.find_spec("hypothesis") is None:
    # Its tests are skipped, and the others of their files run.
    stand_in = MagicMock(__spec__=ModuleSpec("hypothesis", None))
    stand_in.given = lambda *_, **__: pytest.mark.skip(reason="hypothesis is not installed")
    stand_in.example = lambda *_, **__: lambda test: test
    sys.modules |= {"hypothesis": stand_in, "hypothesis.strategies": stand_in.strategies}


def _skip_if_missing(report: pytest.TestReport | pytest.CollectReport, path: Path) -> None:
    """Turn a failure to import an optional package, by the test or by what it tests, into a skip."""
    found = re.search(r"ModuleNotFoundError: No module named '(\w+)", str(report.longrepr))
    if SKIP_MISSING and report.outcome == "failed" and found and found[1] in OPTIONAL:
        report.outcome = "skipped"
        report.longrepr = (str(path), 0, f"Skipped: {found[1]} is not installed")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _skip_if_missing(report, collector.path)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _skip_if_missing(report, item.path)
    return report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run tests that take long, as .ci/run does")
    parser.addoption(
        "--slow", action="store_true", help="run tests that take minutes or gigabytes, and long ones"
    )
    parser.addoption("--skip-missing", action="store_true", help="skip what needs a package that is absent")
    parser.addoption("--data", type=Path, help="folder of the sample data sets, such as em_lucchi/train.h5")


def pytest_configure(config: pytest.Config) -> None:
    from hypothesis import settings

    long = config.getoption("--long") or config.getoption("--slow")
    settings.register_profile("fastseg", max_examples=50 if long else 15, deadline=None)
    settings.load_profile("fastseg")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = (
        [] if config.getoption("--slow") else ["slow"] if config.getoption("--long") else ["slow", "long"]
    )
    for item in items:
        for mark in left_out:
            if item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=f"{mark}: needs --{mark}"))


@pytest.fixture
def sample(request: pytest.FixtureRequest):
    """``sample("em_lucchi/train.h5")``: the path of a sample data file, or a skip that names it."""

    def find(name: str) -> Path:
        folder = request.config.getoption("--data")
        if folder is None or not (folder / name).exists():
            pytest.skip(f"sample data {name} absent: give its folder with --data=FOLDER")
        return folder / name

    return find
