# SPDX-License-Identifier: BSD-3-Clause
"""A pytest plugin: the ops' own tests with Triton's kernels, run by its interpreter, in place of the CPU's.

    TRITON_INTERPRET=1 python -m pytest -p tests.triton_interpreter tests/ops/test_region_contrast.py

Of the tests those of a fused kernel without float64 are kept, which Triton's kernels do not have.
"""

import numpy as np
import pytest
import torch
import triton.language as tl
from fastseg.triton import region_contrast as module
from triton.runtime.interpreter import InterpreterBuilder

# With float64, about the CPU kernel itself, or too slow.
LEFT_OUT = (
    *("test_definition_as_a_loop", "test_fused_is_the_reference", "test_threads_do_not_change_a_bit"),
    *("test_memory_grows_with_rows_not_pairs", "test_repeatable"),
    "test_raw_patches",  # minutes
)


def _widened(handle):
    """bfloat16 as float32: the interpreter multiplies the integers that hold its bits."""
    if handle.dtype.scalar == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data


def _dot(builder, a, b, d, input_precision, max_num_imprecise_acc):
    product = np.matmul(_widened(a), _widened(b), dtype=d.data.dtype)
    return type(d)(product + d.data, d.dtype.scalar)


def pytest_configure(config):
    InterpreterBuilder.create_dot = _dot
    config.interpreted = torch.library.Library("fastseg", "IMPL")
    for op in ("region_contrast", "region_contrast_backward"):
        config.interpreted.impl(op, getattr(module, op), "CPU", allow_override=True)


def pytest_collection_modifyitems(items):
    def wanted(item):
        options = dict(item.callspec.params) if hasattr(item, "callspec") else {}
        if "number" in options and item.originalname == "test_against_float64":
            options |= item.module.CASES[options["number"]]
        fused = options.get("impl", "fused") == "fused"
        return fused and options.get("dtype") != torch.float64 and item.originalname not in LEFT_OUT

    items[:] = filter(wanted, items)


@pytest.fixture(autouse=True)
def processors(request, monkeypatch):
    """A large GPU, or for every second case one of 2 processors, where a program has several shares of the columns."""
    callspec = getattr(request.node, "callspec", None)
    count = 2 if callspec and callspec.params.get("number", 0) % 2 else 132
    monkeypatch.setattr(module, "_describe", lambda tensor: (count, 232448))
