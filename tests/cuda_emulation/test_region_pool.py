# SPDX-License-Identifier: BSD-3-Clause
"""The tests of region pooling run again over the emulated CUDA kernels."""

import pytest

from ..ops.test_region_pool import test_against_float64, test_by_hand, test_definition_as_a_loop  # noqa: F401
from ..ops.test_region_pool_edges import (  # noqa: F401
    test_a_common_offset_keeps_the_variance,
    test_empty,
    test_ids_beyond_float_precision_stay_apart,
    test_nothing_leaks_from_skipped_voxels,
)
from ..ops.test_region_pool_soft import (  # noqa: F401
    test_a_common_offset_keeps_the_variance as test_a_common_offset_keeps_the_soft_variance,
)
from ..ops.test_region_pool_soft import (  # noqa: F401
    test_against_float64 as test_soft_against_float64,
)
from ..ops.test_region_pool_soft import test_by_hand as test_soft_by_hand  # noqa: F401
from ..ops.test_region_pool_soft import test_empty as test_soft_empty  # noqa: F401
from ..ops.test_region_pool_soft import (  # noqa: F401
    test_inf_stays_inf,
    test_logits_by_hand,
    test_nan_reaches_every_part,
)
from .build import missing
from .ops import EVERY_ARRAY, EmulatedOps

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(autouse=True, params=range(2), ids="seed{}".format)
def emulated(request, libraries):
    """Every second time with all arrays one element behind a 16-byte boundary."""
    with EmulatedOps(libraries, request.param, EVERY_ARRAY if request.param % 2 else ()) as mode:
        yield
    assert mode.calls > 0
