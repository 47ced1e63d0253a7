# SPDX-License-Identifier: BSD-3-Clause
"""Of the ops' own tests, which test_ops.py runs again, only those of a fused kernel on CPU tensors are kept."""

from pathlib import Path

import pytest

from .ops import build_all

HERE = Path(__file__).resolve().parent


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
