# SPDX-License-Identifier: BSD-3-Clause
"""Of the ops' own tests, which test_ops.py runs again, only those of a fused kernel on CPU tensors are kept."""

from pathlib import Path

import pytest

from .ops import build_all

HERE = Path(__file__).resolve().parent


BUILD_LIMIT = 1800.0  # seconds: the first test of a machine with other things to do waits for its libraries


def pytest_itemcollected(item):
    if not item.get_closest_marker("timeout"):
        item.add_marker(pytest.mark.timeout(BUILD_LIMIT))


def pytest_collection_modifyitems(items):
    def wanted(item):
        options = item.callspec.params if hasattr(item, "callspec") else {}
        here = HERE in item.path.parents
        return not here or (options.get("impl", "fused"), options.get("device", "cpu")) == ("fused", "cpu")

    items[:] = filter(wanted, items)


@pytest.fixture(scope="session")
def libraries():
    """The emulated CUDA kernels of every op."""
    built = build_all()
    yield built
    for library in built.values():
        library.close()
