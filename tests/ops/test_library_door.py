# SPDX-License-Identifier: BSD-3-Clause
"""The ops' own tests of what they compute, imported and run again through torch.library's door: elsewhere plain tensors
take the eager one. conftest.py keeps those of the fused kernels on the CPU."""

import pytest

from fastseg import _C
from fastseg.ops import doors

from .test_masked_bce import test_against_float64 as test_bce_against_float64  # noqa: F401
from .test_masked_bce import test_by_hand as test_bce_by_hand  # noqa: F401
from .test_masked_bce_edges import test_empty as test_bce_empty  # noqa: F401
from .test_masked_bce_edges import test_layout_is_kept_and_read_in_place  # noqa: F401
from .test_patch_entropy import test_against_float64 as test_entropy_against_float64  # noqa: F401
from .test_patch_entropy import test_by_hand as test_entropy_by_hand  # noqa: F401
from .test_patch_entropy_crops import test_any_strides, test_gradient  # noqa: F401
from .test_patch_entropy_edges import test_empty as test_entropy_empty  # noqa: F401
from .test_patch_entropy_sampling import test_nothing_to_draw, test_order  # noqa: F401
from .test_region_contrast import test_against_float64 as test_contrast_against_float64  # noqa: F401
from .test_region_contrast import test_by_hand as test_contrast_by_hand  # noqa: F401
from .test_region_pool import test_against_float64 as test_pool_against_float64  # noqa: F401
from .test_region_pool import test_by_hand as test_pool_by_hand  # noqa: F401
from .test_region_pool_edges import test_empty as test_pool_empty  # noqa: F401
from .test_region_pool_soft import test_against_float64 as test_soft_pool_against_float64  # noqa: F401
from .test_region_pool_soft import test_by_hand as test_soft_pool_by_hand  # noqa: F401


def nobody_asks(*inputs):
    raise AssertionError("a call asked for the eager door")


@pytest.fixture(autouse=True)
def through_the_library(monkeypatch):
    monkeypatch.setattr(_C, "choose_door", nobody_asks)
    with doors.force_library():
        yield
