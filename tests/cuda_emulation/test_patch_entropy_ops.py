# SPDX-License-Identifier: BSD-3-Clause
"""The tests of patch_entropy, sample_patches and extract_patches, imported and run again over the emulated CUDA
kernels: two orders of threads and blocks, in the second with all arrays one element behind a 16-byte boundary."""

import pytest

from ..ops.test_patch_entropy import test_against_float64, test_by_hand, test_definition_as_a_loop  # noqa: F401
from ..ops.test_patch_entropy_crops import test_any_strides, test_gradient  # noqa: F401
from ..ops.test_patch_entropy_crops import test_definition_as_a_loop as test_crops_as_a_loop  # noqa: F401
from ..ops.test_patch_entropy_edges import (  # noqa: F401
    test_a_window_of_zeros_after_others_is_zero,
    test_empty,
    test_nothing_leaks_from_masked_voxels_and_gaps,
    test_slopes_at_the_ends,
)
from ..ops.test_patch_entropy_sampling import (  # noqa: F401
    test_corners_in_three_axes,
    test_nothing_to_draw,
    test_order,
    test_seed,
    test_the_same_windows_everywhere,
)
from .build import missing
from .ops import EVERY_ARRAY, EmulatedOps, PatchEntropyOps

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(autouse=True, params=[0, pytest.param(1, marks=pytest.mark.long)], ids="seed{}".format)
def emulated(request, libraries):
    library = {PatchEntropyOps: libraries[PatchEntropyOps]}
    with EmulatedOps(library, request.param, EVERY_ARRAY if request.param else ()) as mode:
        yield
    assert mode.calls > 0
