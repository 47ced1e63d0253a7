# SPDX-License-Identifier: BSD-3-Clause
"""The tests of the ops, imported and run again over the emulated CUDA kernels: five orders of threads and blocks,
every second one with all arrays one element behind a 16-byte boundary."""

import pytest

from ..ops.test_masked_bce import test_against_float64, test_by_hand, test_definition_as_a_loop  # noqa: F401
from ..ops.test_masked_bce_edges import (  # noqa: F401
    test_empty,
    test_layout_is_kept_and_read_in_place,
    test_nan_propagates_from_voxels_that_count,
    test_nothing_labelled,
    test_nothing_leaks_from_ignored_voxels,
)
from .build import missing
from .ops import EVERY_ARRAY, EmulatedOps

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(autouse=True, params=range(5), ids="seed{}".format)
def emulated(request, libraries):
    with EmulatedOps(libraries, request.param, EVERY_ARRAY if request.param % 2 else ()) as mode:
        yield
    assert mode.calls > 0
