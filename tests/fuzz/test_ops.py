# SPDX-License-Identifier: BSD-3-Clause
"""Some thousands of random calls of the ops against float64 oracles; millions by ``python -m tests.fuzz``."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.ops import OPS


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_random_calls(op) -> None:
    fuzz(op, seed=0, cases=range(300))
