# SPDX-License-Identifier: BSD-3-Clause
"""Every test of an op runs with poisoned memory."""

import pytest
import torch


@pytest.fixture(autouse=True)
def poison_fresh_memory():
    """torch.empty is filled with NaN, so that what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
