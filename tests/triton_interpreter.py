# SPDX-License-Identifier: BSD-3-Clause
"""A pytest plugin: the ops' own tests with Triton's kernels, run by its interpreter, in place of the CPU's.

    TRITON_INTERPRET=1 python -m pytest -p tests.triton_interpreter tests/ops/test_region_contrast.py

Of the tests those of a fused kernel without float64 are kept, which Triton's kernels do not have.
"""

import math
import re
import zlib

import numpy as np
import pytest
import torch
import triton.language as tl
from fastseg.triton import region_contrast as module
from fastseg.triton import region_contrast_pairs
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from fastseg import _C

# With float64, about the CPU kernel itself, or too slow.
LEFT_OUT = (
    *("test_definition_as_a_loop", "test_fused_is_the_reference", "test_threads_do_not_change_a_bit"),
    *("test_memory_grows_with_rows_not_pairs", "test_repeatable"),
    *("test_both_doors_and_the_reference_refuse", "test_blocks_of_other_groups"),
    "test_raw_patches",  # minutes
)
WAYS = ("as they come", "sorted")


def _widened(handle):
    """bfloat16 as float32: the interpreter multiplies the integers that hold its bits."""
    if handle.dtype.scalar == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data


def _contracted(multiply, combine):
    """float32 arithmetic as a GPU does it: a product that is added to or subtracted from is not rounded before.

    Only what is rounded by itself, such as tl.fma(a, b, 0), comes out of that with the same bits everywhere.
    """

    def product(builder, a, b):
        if a.data.dtype == np.float32 and (b.data == 1).all():
            same = np.broadcast_to(a.data, np.broadcast_shapes(a.data.shape, b.data.shape))
            return TensorHandle(same, a.dtype, a.attr)
        rounded = multiply(builder, a, b)
        if rounded.data.dtype == np.float32:
            rounded.attr["exactly"] = a.data.astype(np.float64) * b.data
        return rounded

    def add(builder, a, b, sign=1):
        exactly = [handle.attr.get("exactly") for handle in (a, b)]
        if exactly[0] is None and exactly[1] is None:
            return combine[sign](builder, a, b)
        number = 0 if exactly[0] is not None else 1  # one product at most is left unrounded
        terms = [exactly[k] if k == number else (a, b)[k].data.astype(np.float64) for k in (0, 1)]
        return TensorHandle((terms[0] + sign * terms[1]).astype(np.float32), a.dtype.scalar)

    return product, add, lambda builder, a, b: add(builder, a, b, -1)


def _dot(builder, a, b, d, input_precision, max_num_imprecise_acc):
    product = np.matmul(_widened(a), _widened(b), dtype=d.data.dtype)
    return type(d)(product + d.data, d.dtype.scalar)


def pytest_addoption(parser):
    parser.addoption(
        "--plant-contraction", action="store_true", help="products before a difference are not rounded"
    )


def pytest_configure(config):
    if config.getoption("--plant-contraction"):
        region_contrast_pairs.rounded_product = lambda a, b: a * b
    InterpreterBuilder.create_dot = _dot
    plain = {1: InterpreterBuilder.create_fadd, -1: InterpreterBuilder.create_fsub}
    multiply, add, subtract = _contracted(InterpreterBuilder.create_fmul, plain)
    InterpreterBuilder.create_fmul, InterpreterBuilder.create_fadd = multiply, add
    InterpreterBuilder.create_fsub = subtract
    config.interpreted = torch.library.Library("fastseg", "IMPL")
    for op in ("region_contrast", "region_contrast_backward"):
        config.interpreted.impl(op, getattr(module, op), "CPU", allow_override=True)
        setattr(_C, op, getattr(module, op))  # the other door


def pytest_collection_modifyitems(items):
    def wanted(item):
        options = dict(item.callspec.params)
        if "number" in options and item.originalname == "test_against_float64":
            options |= item.module.CASES[options["number"]]
        fused = options.get("impl", "fused") == "fused"
        kept = fused and options.get("dtype") != torch.float64 and item.originalname not in LEFT_OUT
        slow = options.get("size", 0) >= 70 or options.get("poison") == math.inf  # NaN stays
        return kept and not slow and options["machine"] == _way(item)

    items[:] = filter(wanted, items)


def _way(item):
    """One of the ways of `machine`, the same for a test in every run: half of the tests of a function take either."""
    number = item.callspec.params.get("number")
    name = re.sub(f"-?({'|'.join(WAYS)})", "", item.nodeid)
    return WAYS[number // 2 % 2 if number is not None else zlib.crc32(name.encode()) % 2]


@pytest.fixture(autouse=True, params=WAYS)
def machine(request, monkeypatch):
    """Rows as they come or sorted, and a large GPU, or for every second numbered case one of 2 processors, where a
    program has several shares of the columns."""
    number = request.node.callspec.params.get("number")
    monkeypatch.setattr(module, "_describe", lambda tensor: (2 if number and number % 2 else 132, 232448, 90))
    is_sorted = request.param == "sorted"
    monkeypatch.setattr(module, "_is_sorted", lambda M, N: is_sorted and M > 0 and N > 0)
