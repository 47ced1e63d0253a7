# SPDX-License-Identifier: BSD-3-Clause
"""Every test of an op runs with poisoned memory; test_library_door.py runs some of them again."""

from pathlib import Path

import pytest
import torch

LIBRARY_DOOR = Path(__file__).with_name("test_library_door.py")


def pytest_collection_modifyitems(items):
    def wanted(item):
        options = item.callspec.params if hasattr(item, "callspec") else {}
        fused = (options.get("impl", "fused"), options.get("device", "cpu")) == ("fused", "cpu")
        return fused or item.path != LIBRARY_DOOR

    items[:] = filter(wanted, items)


@pytest.fixture(autouse=True)
def poison_fresh_memory():
    """torch.empty is filled with NaN, so that what a kernel leaves unwritten shows. That comes with deterministic
    algorithms, which on a GPU not all of torch's own have, in references say: there torch only warns."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def deterministic(poison_fresh_memory):
    """For tests that need it: an operation of torch's without a deterministic algorithm raises."""
    torch.use_deterministic_algorithms(True)
